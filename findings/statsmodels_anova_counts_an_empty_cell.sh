#!/usr/bin/env bash
# statsmodels 0.15.0, Python 3.11: anova_lm of a two-way grid with one combination that never occurs.
#
# Expected: sequential (typ=1) sums of squares add up to the total, as in R and as the nested fits give them, and the
# interaction of a 3 x 3 grid with one empty cell has 3 degrees of freedom.
# Seen: the fit drops the redundant column (it warns that the design is rank-deficient), but the table still books 4 degrees
# of freedom, and typ=1 takes a sum of squares that does not exist: effects and residual exceed the total sum by a tenth and
# more. typ=2 gives main effects and an interaction that differ from those of nested fits, and only warns of a rank.
# anova_lm(smaller, larger), which compares two fits, is right; so is differencing residual sums of squares by hand.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  statsmodels==0.15.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1
"$folder/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import pandas as pd
import statsmodels
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
cells = [(a, b) for a in "xyz" for b in "pqr" for _ in range(3) if (a, b) != ("z", "r")]
data = pd.DataFrame(cells, columns=["a", "b"])
data["y"] = rng.normal(size=len(data)) + (data.a == "y")
full, additive = smf.ols("y ~ C(a) * C(b)", data).fit(), smf.ols("y ~ C(a) + C(b)", data).fit()
total = float(((data.y - data.y.mean()) ** 2).sum())
nested = float(additive.ssr - full.ssr)
sequential, second = anova_lm(full, typ=1), anova_lm(full, typ=2)
by_two_fits = anova_lm(additive, full)
term = "C(a):C(b)"
print(f"statsmodels {statsmodels.__version__}: total sum of squares {total:.3f}")
print(f"  typ=1 adds up to {sequential.sum_sq.sum():.3f}; interaction {sequential.sum_sq[term]:.3f} on {sequential.df[term]:g} df")
print(f"  typ=2 interaction {second.sum_sq[term]:.3f} on {second.df[term]:g} df")
print(f"  nested fits: interaction {nested:.3f} on {additive.df_resid - full.df_resid:g} df")
assert sequential.sum_sq.sum() > 1.1 * total, "typ=1 adds up now"
assert sequential.df[term] == second.df[term] == 4 and additive.df_resid - full.df_resid == 3
assert abs(second.sum_sq[term] - nested) > 0.05
assert abs(by_two_fits.ss_diff[1] - nested) < 1e-9
PY
