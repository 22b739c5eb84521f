"""The methods and rivals that a comparison runs, as plain tuples."""

from __future__ import annotations

from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.methods.attention import Attention
from edgeedit.edit.methods.default import Default
from edgeedit.edit.methods.full import Full, FullInterpolated, LayerNorm
from edgeedit.edit.methods.local import Local
from edgeedit.edit.methods.lora import Lora
from edgeedit.edit.methods.lorsu_paper import LorsuPaper
from edgeedit.edit.methods.method import Method
from edgeedit.edit.methods.no_edit import NoEdit
from edgeedit.edit.methods.refit import RefitBaseShots, RefitShots
from edgeedit.edit.methods.shira import Shira
from edgeedit.edit.methods.spu import Spu

LOCAL: tuple[type[Local], ...] = (Default, Lorsu, LorsuPaper, Spu, Attention, Shira)
RIVALS: tuple[type[Method], ...] = (NoEdit, Full, FullInterpolated, LayerNorm, Lora, RefitShots, RefitBaseShots)
METHODS: tuple[type[Method], ...] = (*LOCAL, *RIVALS)
