"""Sentence patterns of the demo grammar. Names in braces are filled from a field's vocabulary; `a_` adds the article, plurals end in s.

All of them were written for this file.
"""

OPENINGS = """
In {field}, few subjects repay study as well as the {thing}.
This section of the {field} course turns to the {thing} and to its {aspect}.
Anyone who works in {place} will sooner or later meet {a_thing}.
A student of {field} usually meets {a_thing} in the first year.
The {aspect} of {a_thing} is best understood by an example from {place}.
Before the {person} begins to work with {a_thing}, one idea has to be clear.
What makes {a_thing} worth a chapter of its own is its {aspect}.
We saw earlier how {process} works; here it is applied to {a_thing}.
""".strip().split("\n")

GENERAL = """
The {part} of {a_thing} is where {process} has its greatest effect.
{A_person} in {place} may check the {quantity} every {period} and note it beside the {quantity2}.
When the {quantity} rises, the {part} responds long before the {part2} does.
Without {a_tool}, {process} can only be judged by eye.
It helps to think of the {part} and the {part2} as two halves of one system.
In {place}, {things} behave differently, because the {quantity} there is seldom steady.
A careful {person} never relies on {a_tool} alone.
About {number} in every hundred {things} show signs of {process} at this stage.
{Process} depends on the {part}, and the {part} in turn depends on the {quantity}.
The usual mistake is to confuse {process} with {process2}.
For {a_thing} of common size, the {quantity} settles after about {number} {periods}.
{People} often disagree about how much {process} matters here.
One part of the answer lies in the {part2}, which limits the {quantity}.
Two {things} that look alike can differ widely in {quantity}.
Measured with {a_tool}, the {quantity} proves to be lower than most {people} expect.
If {process} stops, the {part2} is the first place to look.
The same reasoning applies to the {quantity2}, although the numbers are smaller.
{A_tool} placed near the {part} records {process} as it happens.
Only in {place} can both {process} and {process2} be watched on the same {thing}.
A rough rule says that doubling the {quantity} cuts the {quantity2} by a third.
The {part} wears, shifts or fades, yet the {thing} as a whole keeps its character.
Note that {process2} begins at the {part} and only later reaches the {part2}.
Most records from {place} give the {quantity} but leave out the {quantity2}.
{A_person} with {a_tool} needs roughly {number} {periods} to learn this.
The link between {quantity} and {process} is the thread that runs through this chapter.
Compare {a_thing} from {place} with one that has never been through {process}.
Seen closely, each {part} carries traces of {process}.
Neither the {part} nor the {part2} explains the {quantity} by itself.
""".strip().split("\n")

CLOSINGS = """
To sum up, the {thing} joins {process} with {process2}, and the {quantity} tells us how well.
As an exercise, explain why the {quantity} of {a_thing} changes in {place}.
The next section asks what {process2} adds to this picture.
A reader who remembers the {part} and the {quantity} has kept the most useful half of this section.
Keep the {tool} at hand, since the next example returns to the {part}.
With this in mind, the {aspect} of any other {thing} should hold few surprises.
""".strip().split("\n")

ASPECTS = {
    "structure": """
The structure of {a_thing} can be read from the outside inwards, layer by layer.
Its framework rests on the {part}, to which every {part2} is attached.
A sketch in cross-section shows the {part} at the centre and the {part2} at the rim.
Symmetry is rarely perfect: the arrangement of {parts} leans to one side.
What holds the structure together is the joint between {part} and {part2}.
Remove one {part}, and the whole arrangement must carry its share.
""",
    "origin": """
How {a_thing} comes into being was a riddle to early {people}.
The first trace of {a_thing} appears as a small {part}, hardly visible.
From such beginnings {process} builds the {thing} up over {number} {periods}.
Three conditions must meet before {a_thing} can form in {place}.
Its beginnings lie in {process2}, long before any {part} is formed.
An older theory placed the source in {place}, which newer evidence does not support.
""",
    "measurement": """
To measure the {quantity}, set {a_tool} against the {part} and take three readings.
The average of {number} readings is safer than any single value.
Error bars grow when the {tool} is not calibrated in {place}.
A table of {quantity} against {quantity2} reveals the outliers at once.
Record the unit, the time and the instrument together with each reading.
Repeated readings of the {quantity} should agree within {number} percent.
""",
    "maintenance": """
Routine upkeep begins with cleaning the {part} and inspecting the {part2}.
A maintenance log for each {thing} saves {people} from guessing later.
Every {period} the {person} should replace a worn {part} before it fails.
Good upkeep is cheap: a little attention to {process} prevents large repairs.
Spare {parts} ought to be stored dry and labelled by date.
A checklist of {number} points covers the upkeep of {a_thing} in full.
""",
    "failure": """
Failure seldom comes without warning: the {quantity} drifts first.
The most common fault is a broken {part}, followed by trouble in the {part2}.
To find the cause of a breakdown, work back from the {part2} to the {part}.
Of {number} failures reported in {place}, most began with faulty {process}.
A damaged {thing} may seem to recover, only to fail again under {process2}.
The symptom appears at the {part}, but the root cause lies elsewhere.
""",
    "history": """
A century ago {people} knew {a_thing} under quite another name.
Old letters from {place} describe the {thing} in surprising detail.
The invention of the {tool} changed how later generations saw {process}.
Museums keep early examples in which the {part} is still of the ancient form.
Historians trace the tradition through {number} generations of {people}.
By the end of that era, {process2} had replaced the older custom.
""",
    "economics": """
The price of {a_thing} follows demand more closely than it follows {quantity}.
In {place}, wages for {people} make up most of the cost.
An investment in {a_tool} pays for itself after {number} {periods}.
Suppliers compete on the {part}, where the profit is largest.
A budget that leaves out {process} will be exceeded before the year ends.
When the market falls, buyers postpone {process2} and keep their old {things}.
""",
    "teaching": """
Teachers introduce {a_thing} with a simple question about its {part}.
Pupils remember {process} better after they have used {a_tool} themselves.
A lesson plan might give {number} minutes to the {part} and the rest to discussion.
In the classroom, a model of the {thing} replaces a visit to {place}.
The examination asks learners to label each {part} and to explain {process}.
Beginners should explain {process2} aloud to a classmate before they write it down.
""",
    "variation": """
No two kinds of {thing} share exactly the same {part}.
Varieties found in {place} form a group of their own.
A key for telling them apart begins with the {part} and ends with the {quantity}.
Rare forms, about {number} in a thousand, lack the {part2} entirely.
Between the extremes lies a range of intermediate types.
Classification by {quantity} gives {number} types, by {part} only a handful.
""",
    "risk": """
The chief hazard of working with {a_thing} lies in careless {process}.
Gloves, goggles and a clear exit are required wherever {a_tool} is in use.
Regulations in {place} forbid {process2} without supervision.
An accident report should name the {part} and the {quantity} at the time.
Risk falls sharply once {people} are trained to watch the {quantity}.
Emergency drills rehearse what to do when the {part} gives way.
""",
}

ASPECTS_SENTENCES = {name: patterns.strip().split("\n") for name, patterns in ASPECTS.items()}
CONNECTIVES = ("In practice, ", "For this reason, ", "As a rule, ", "By contrast, ", "Even so, ", "In other words, ", "Likewise, ")
PERIODS = ("hour", "day", "week", "month", "season", "year")
NUMBERS = ("three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "fifteen", "twenty", "thirty", "forty")
