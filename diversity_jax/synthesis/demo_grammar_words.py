"""Words of the demo grammar: fields of knowledge with the things, parts, processes, tools, places, quantities and
people of each.

Things, parts, tools and people are countable nouns with a regular plural; processes and quantities stand without an
article; places follow "in". All of it was written for this file.
"""

from dataclasses import dataclass

from diversity_jax.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Field:
    """Vocabulary of one field of knowledge."""

    name: str
    things: tuple[str, ...]
    parts: tuple[str, ...]
    processes: tuple[str, ...]
    tools: tuple[str, ...]
    places: tuple[str, ...]
    quantities: tuple[str, ...]
    people: tuple[str, ...]


_LISTS = ("things", "parts", "processes", "tools", "places", "quantities", "people")

_TABLE = """
botany
fern, orchid, oak, cactus, water lily, climbing vine, dandelion, mangrove
leaf vein, root hair, stem, bud, seed coat, petal, spore case
pollination, photosynthesis, budding, wilting, germination, sap flow
hand lens, plant press, soil probe, grafting knife, light meter
a shaded forest, a walled garden, a salt marsh, a mountain meadow, a glasshouse
leaf area, water content, growth rate, chlorophyll level, root depth, seed yield
botanist, gardener, plant breeder, herbalist

astronomy
comet, pulsar, red dwarf, asteroid, nebula, ring system, eclipse, binary star
core, outer shell, magnetic pole, dust tail, gas envelope, orbit
accretion, radioactive decay, orbital drift, stellar wind, gravitational collapse, light scattering
telescope, spectrograph, star chart, photometer, radio dish
a dark desert, a polar orbit, a distant galaxy, an observatory dome, a dense star cluster
luminosity, redshift, angular size, rotation period, surface temperature, mass ratio
astronomer, orbit analyst, telescope operator, stargazer

plumbing
ball valve, drain pipe, water heater, pressure tank, shower mixer, sump pump, radiator, septic tank
gasket, elbow joint, thread, float arm, inlet, overflow
soldering, venting, corrosion, water hammer, descaling, pressure testing
pipe wrench, tubing cutter, flaring tool, leak detector, hand auger
a damp basement, a tall apartment block, a crawl space, an old farmhouse, a boiler room
flow rate, static pressure, pipe diameter, water hardness, heat loss, slope
plumber, building inspector, apprentice, caretaker

baking
sourdough loaf, rye bread, puff pastry, brioche, flatbread, sponge cake, pretzel, custard tart
crust, crumb, filling, glaze, dough layer, air pocket
fermentation, kneading, proofing, browning, laminating, scoring
rolling pin, bread peel, dough scraper, oven stone, proofing basket
a village bakery, a wood-fired oven, a hotel kitchen, a cool pantry, a school canteen
hydration, oven temperature, gluten strength, acidity, rising time, sugar content
baker, pastry cook, miller, recipe tester

sailing
dinghy, catamaran, ketch, cutter, keelboat, sailing barge, schooner, trimaran
mast, rudder, halyard, jib, centreboard, cleat
tacking, reefing, anchoring, heeling, mooring, wind shadowing
sextant, wind vane, depth sounder, sailmaker's needle, tide table
a sheltered bay, an open strait, a busy harbour, a rocky inlet, a shipping lane
apparent wind, draught, displacement, leeway, hull speed, sail area
skipper, navigator, rigger, harbour pilot

geology
granite dome, lava flow, limestone cave, fault line, glacier, river delta, geode, sandstone arch
mineral grain, bedding plane, fracture, crystal face, sediment layer, vein
erosion, crystallisation, uplift, metamorphism, weathering, subsidence
rock hammer, compass clinometer, seismograph, core drill, acid bottle
a dry canyon, a volcanic island, a coastal cliff, a deep quarry, a rift valley
hardness, porosity, grain size, seismic velocity, density, age
geologist, quarry manager, cave surveyor, mineral collector

beekeeping
honeybee colony, mason bee, bumblebee nest, queen bee, swarm, drone, worker bee, wild hive
comb cell, wing, brood frame, stinger, wax gland, pollen basket
foraging, swarming, honey ripening, requeening, overwintering, comb building
smoker, hive tool, honey extractor, bee brush, pollen trap
an apple orchard, a heather moor, a rooftop apiary, a clover meadow, a forest edge
honey yield, mite count, brood area, hive weight, nectar flow, colony strength
beekeeper, pollination contractor, entomologist, queen breeder

typography
serif typeface, italic font, drop capital, ligature, woodblock letter, title page, poster, specimen sheet
stem stroke, counter, baseline, terminal, crossbar, ascender
kerning, hinting, punchcutting, justification, letterspacing, proofreading
composing stick, type case, ruling pen, pixel grid, galley proof
a printing house, a design studio, a newspaper office, a museum archive, a sign workshop
x-height, line length, leading, stroke contrast, legibility, ink spread
typographer, compositor, punchcutter, layout editor

meteorology
thunderstorm, sea breeze, cold front, tornado, monsoon, fog bank, blizzard, jet stream
cloud base, updraft, pressure ridge, rain band, anvil, wind core
condensation, convection, evaporation, frontal lifting, hail formation, radiative cooling
barometer, weather balloon, rain gauge, doppler radar, anemometer
a coastal plain, a high plateau, a city centre, a polar station, a river basin
humidity, dew point, wind shear, air pressure, visibility, rainfall intensity
forecaster, storm chaser, climate observer, airport meteorologist

bookkeeping
ledger, cash budget, tax return, invoice, payroll run, balance sheet, audit trail, expense report
debit entry, credit entry, account code, footnote, receipt, running total
reconciliation, depreciation, accrual, posting, invoicing, year-end closing
adding machine, spreadsheet, chart of accounts, receipt scanner, filing cabinet
a family shop, a charity office, a shipping firm, a town hall, a farm cooperative
gross margin, net income, liquidity, tax liability, turnover, working capital
bookkeeper, auditor, treasurer, shop owner

carpentry
dovetail joint, oak table, window frame, roof truss, staircase, rocking chair, timber floor, cabinet
tenon, dowel, rail, veneer, panel, hinge
planing, sawing, seasoning, glueing, sanding, steam bending
marking gauge, block plane, mortise chisel, hand saw, bar clamp
a joiner's workshop, a timber yard, a half-built house, a boat shed, a restored chapel
grain direction, moisture content, joint strength, board width, surface finish, load capacity
carpenter, cabinet maker, timber merchant, furniture restorer

neurology
reflex arc, motor neuron, sleep cycle, migraine, optic nerve, memory trace, spinal cord, seizure
synapse, axon, dendrite, receptor, myelin sheath, ion channel
signal transmission, inhibition, nerve repair, habituation, memory consolidation, sensory adaptation
reflex hammer, brain scanner, electrode cap, tuning fork, reaction timer
a sleep laboratory, a stroke unit, a teaching hospital, a rehabilitation ward, a children's clinic
firing rate, conduction speed, reaction time, membrane potential, muscle tone, attention span
neurologist, physiotherapist, sleep researcher, ward nurse

weaving
wool blanket, linen towel, silk scarf, tapestry, twill cloth, damask, carpet, ribbon
warp thread, weft thread, selvedge, fringe, knot, pattern repeat
spinning, dyeing, carding, fulling, warping, hemming
floor loom, shuttle, drop spindle, heddle, tension gauge
a mountain village, a dye house, a cotton mill, a craft school, a bazaar
thread count, colour fastness, yarn twist, drape, shrinkage, tensile strength
weaver, dyer, textile conservator, wool trader

linguistics
vowel system, dialect, verb paradigm, loanword, tone contour, writing system, creole, proverb
syllable, prefix, root morpheme, consonant cluster, clause, stress pattern
sound change, borrowing, code switching, word formation, vowel harmony, language transfer
sound recorder, phonetic chart, parallel corpus, questionnaire, word list
a border town, an island community, a bilingual classroom, a court of law, a migrant quarter
word frequency, pitch range, vowel length, mutual intelligibility, sentence length, vocabulary size
linguist, translator, dialect speaker, language teacher

electronics
amplifier, oscillator, voltage regulator, radio receiver, logic gate, battery charger, sensor board, relay
resistor, capacitor, transistor, solder joint, heat sink, ground plane
rectification, filtering, feedback, switching, amplitude modulation, signal decoupling
oscilloscope, multimeter, soldering iron, signal generator, breadboard
a repair shop, a satellite works, a noisy factory, a hobby room, a test laboratory
gain, impedance, bandwidth, ripple voltage, noise level, power consumption
circuit designer, repair technician, radio amateur, test engineer

viticulture
grapevine, vineyard terrace, white wine, dessert wine, oak barrel, sparkling wine, rootstock, harvest
grape skin, tendril, grape cluster, pip, shoot, trellis wire
pruning, malolactic conversion, grafting, must pressing, barrel ageing, leaf thinning
refractometer, secateur, basket press, hydrometer, tasting glass
a chalky slope, a river valley, a cool cellar, a volcanic terrace, a cooperative winery
sugar level, tannin content, yield per vine, soil drainage, volatile acidity, alcohol strength
winegrower, cellar master, grape picker, wine taster

glassblowing
goblet, stained window, laboratory flask, paperweight, glass bead, chandelier, mirror, perfume bottle
stem foot, rim, gather, bubble, coloured rod, seam
annealing, mould blowing, engraving, fusing, acid etching, flame working
blowpipe, jack, punty rod, graphite paddle, annealing kiln
an island workshop, a chemistry department, a cathedral, a night market, a furnace hall
viscosity, thermal shock, wall thickness, refractive index, melting point, clarity
glassblower, engraver, kiln builder, glazier

railways
steam locomotive, signal box, freight wagon, level crossing, tunnel, tram line, marshalling yard, night train
axle, coupling, sleeper, brake shoe, overhead wire, switch blade
shunting, electrification, ballast tamping, timetabling, braking, track alignment
track gauge, signal lamp, rail grinder, brake tester, token machine
a mountain pass, a port terminal, a suburban junction, a desert line, a main station
axle load, gradient, line capacity, braking distance, traction effort, punctuality
train driver, dispatcher, track inspector, conductor

cartography
contour map, sea chart, globe, city plan, map projection, road atlas, survey marker, relief model
legend, grid line, scale bar, contour interval, place name, boundary
triangulation, generalisation, georeferencing, hill shading, sounding, map revision
theodolite, drafting compass, aerial camera, positioning receiver, planimeter
an unmapped valley, a land registry, a disputed border, a flood plain, a survey ship
map scale, distortion, elevation, positional accuracy, map datum, survey cost
cartographer, surveyor, hydrographer, map librarian

immunology
antibody, vaccine, lymph node, allergic reaction, fever, white blood cell, autoimmune disease, graft
antigen, receptor site, cell wall, messenger protein, plasma cell, binding pocket
inflammation, antibody maturation, immune tolerance, cell sorting, booster vaccination, pathogen clearance
flow cytometer, culture plate, microscope slide, centrifuge, blood sampler
a village clinic, a transplant ward, a vaccine plant, a blood bank, a research animal house
antibody titre, cell count, binding affinity, body temperature, response time, dose
immunologist, vaccinator, laboratory assistant, allergy patient

pottery
stoneware jar, porcelain cup, raku bowl, roof tile, tea pot, clay whistle, brick oven, terracotta figure
handle, spout, foot ring, slip layer, lid, glaze drop
throwing, bisque firing, glazing, wedging, coil building, trimming
potter's wheel, wire cutter, turning tool, firing cone, sieve
a riverside village, a tile factory, a dig site, a school studio, a climbing kiln
clay shrinkage, firing temperature, water absorption, glaze thickness, plasticity, oxide content
potter, kiln firer, clay digger, ceramics curator

chess
opening trap, rook ending, passed pawn, bishop pair, king attack, blitz game, adjournment, chess problem
open file, weak square, pawn chain, outpost, diagonal, back rank
castling, calculation, exchange sacrifice, zugzwang, pawn storming, time management
chess clock, score sheet, opening book, endgame table, analysis board
a tournament hall, a park corner, a prison library, a chess cafe, a world championship match
material balance, tempo count, rating, king safety, piece activity, drawing chance
grandmaster, arbiter, chess coach, club player

firefighting
forest fire, fire engine, sprinkler system, chimney fire, smoke alarm, rescue ladder, chemical blaze, hydrant
nozzle, hose coupling, fire door, ember, air bottle, firebreak
ventilation, backdraft, controlled burning, search and rescue, foam spreading, smouldering
thermal camera, breathing apparatus, halligan bar, fire blanket, pump panel
a pine plantation, a high-rise stairwell, an oil depot, a ship engine room, a dry grassland
heat release, water pressure, burn rate, oxygen level, response distance, fuel load
firefighter, incident commander, fire investigator, safety officer

ornithology
barn owl, migrating swallow, penguin colony, hummingbird, kingfisher, songbird, vulture, woodpecker
flight feather, beak, nest lining, eggshell, talon, tail covert
moulting, brooding, song learning, ring recovery, courtship display, soaring
spotting scope, mist net, nest box, field guide, radio tag
a reed bed, a sea cliff, a church tower, an ancient woodland, a stopover lagoon
wing span, clutch size, call pitch, flight speed, fledging success, body fat
ornithologist, bird ringer, nest warden, wildlife painter

cryptography
block cipher, public key, digital signature, hash function, code book, one-time pad, key exchange, password vault
round key, padding byte, substitution box, nonce, checksum, key schedule
encryption, factoring, frequency analysis, key rotation, random generation, authentication
cipher machine, smart card, hardware token, entropy source, protocol analyser
a bank network, a diplomatic cable room, an election office, a telephone exchange, a ground station
key length, collision resistance, entropy, ciphertext size, attack cost, latency
cryptographer, security auditor, cipher clerk, protocol designer

horology
pendulum clock, pocket watch, sundial, marine chronometer, tower clock, quartz watch, hourglass, alarm clock
escapement, mainspring, balance wheel, dial, pinion, jewel bearing
winding, oiling, regulation, striking, temperature compensation, gear cutting
loupe, timing machine, watch screwdriver, mainspring winder, poising tool
a watch valley, a railway office, a ship's cabin, a cathedral tower, an auction house
beat error, daily rate, power reserve, amplitude, gear ratio, lubrication interval
watchmaker, clock keeper, dial painter, collector

irrigation
rice paddy, canal, drip line, water wheel, reservoir, sprinkler pivot, terrace field, well field
sluice gate, furrow, emitter, lining, intake screen, embankment
flooding, leaching, seepage, scheduling, siltation, water metering
tensiometer, siphon tube, flow meter, laser level, gate valve
an arid valley, a delta farm, an oasis, a sugar estate, a hillside orchard
soil moisture, salinity, crop demand, conveyance loss, infiltration rate, pumping head
farmer, canal master, agronomist, water judge

opera
aria, overture, chorus scene, comic duet, stage set, recitative, ballet interlude, finale
melody line, cadence, libretto page, costume, orchestra pit, high note
rehearsal, vocal warm-up, stage lighting, orchestration, prompting, surtitling
tuning piano, conductor's score, stage crane, wig block, pitch pipe
a court theatre, a summer festival, a recording hall, a provincial stage, a rehearsal loft
vocal range, tempo, breath length, acoustic balance, ticket income, dynamic contrast
soprano, stage director, conductor, set painter

metallurgy
steel beam, bronze bell, cast iron stove, copper wire, aluminium can, knife blade, titanium implant, gold coin
grain boundary, oxide skin, weld bead, inclusion, edge, slag particle
smelting, quenching, rolling, tempering, alloying, electroplating
blast furnace, hardness tester, crucible, casting mould, furnace thermocouple
a foundry, a rolling mill, a mint, an aircraft plant, a village smithy
yield stress, ductility, carbon content, fatigue life, conductivity, melting range
metallurgist, smith, furnace operator, weld inspector

archaeology
burial mound, clay tablet, roman road, shipwreck, stone circle, midden, hill fort, cave painting
posthole, potsherd, pollen layer, inscription, floor level, burial gift
excavation, radiocarbon dating, field walking, conservation, stratigraphy, site mapping
trowel, sieve frame, ground radar, grid string, field notebook
a ploughed field, a desert tell, a flooded valley, a city building site, a peat bog
layer depth, calibrated age, find density, site extent, bone preservation, tree ring width
archaeologist, museum conservator, field student, metal detectorist
"""


def _read_table() -> tuple[Field, ...]:
    fields = []
    for block in _TABLE.strip().split("\n\n"):
        name, *lists = block.split("\n")
        if len(lists) != len(_LISTS):
            raise InputError(
                f"demo grammar: field {name!r} has {len(lists)} lists; expected {len(_LISTS)}: {', '.join(_LISTS)}"
            )
        fields.append(
            Field(name=name, **{key: tuple(line.split(", ")) for key, line in zip(_LISTS, lists, strict=True)})
        )
    return tuple(fields)


FIELDS = _read_table()
