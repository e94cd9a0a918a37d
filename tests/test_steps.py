"""The count of a step's instructions (tools/steps.py), on a disassembly made up for it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def steps() -> Any:
    """Return the module of the tool."""
    path = Path(__file__).parent.parent / "tools" / "steps.py"
    spec = importlib.util.spec_from_file_location("steps", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["steps"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXT = """
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 EXIT ;
.L_x_0:
        /*0020*/                   ISETP.GE.AND P0, PT, R1, R2, PT ;
        /*0030*/               @P0 BRA `(.L_x_9) ;
.L_x_1:
        /*0040*/                   LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64] ;
        /*0050*/                   ISETP.NE.AND P1, PT, R4, -0x1, PT ;
        /*0060*/              @!P1 BRA P2, `(.L_x_1) ;
        /*0070*/                   WARPSYNC.ALL ;
        /*0080*/                   HMMA.16816.F32 R8, R4, R6, RZ ;
        /*0090*/               @P3 BRA `(.L_x_2) ;
        /*00a0*/               @P4 HMMA.16816.F32 R8, R4, R6, R8 ;
        /*00b0*/                   FADD R8, R8, R9 ;
        /*00c0*/                   FADD R8, R8, R9 ;
.L_x_2:
        /*00d0*/               @P5 BRA `(.L_x_4) ;
        /*00e0*/                   MUFU.RCP R8, R8 ;
        /*00f0*/               @P6 BRA `(.L_x_3) ;
        /*0100*/                   FFMA R8, R8, R9, R8 ;
        /*0110*/                   FFMA R8, R8, R9, R8 ;
        /*0120*/                   FFMA R8, R8, R9, R8 ;
        /*0130*/                   FFMA R8, R8, R9, R8 ;
        /*0140*/                   FFMA R8, R8, R9, R8 ;
        /*0150*/                   BRA `(.L_x_5) ;
.L_x_3:
        /*0160*/                   MOV R10, 0x170 ;
        /*0170*/                   CALL.REL.NOINC `($slow) ;
.L_x_5:
        /*0180*/                   BRA.DIV UR4, `(.L_x_8) ;
        /*0190*/                   STG.E.STRONG.GPU desc[UR4][R2.64], R8 ;
        /*01a0*/                   STG.E desc[UR4][R2.64], R8 ;
.L_x_4:
        /*01b0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*01c0*/              @!P0 BRA `(.L_x_0) ;
.L_x_9:
        /*01d0*/                   EXIT ;
.L_x_8:
        /*01e0*/                   WARPSYNC.COLLECTIVE R4, `(.L_x_4) ;
        /*01f0*/                   BRA `(.L_x_4) ;
"""
WORK = {"matrix": 1, "asked": 16, "functions": 1, "posts": 1, "stores": 1}


def opcodes(steps: Any, **work: int) -> list[str]:
    """Return the opcodes of the way that is counted."""
    return [i.opcode.split(".")[0] for i in steps.count(TEXT, WORK | work)]


def test_the_way_that_does_the_work(steps: Any) -> None:
    """Polls once, without calls and without branches of threads that have come apart."""
    begin = ["ISETP", "BRA", "LDG", "ISETP", "BRA", "WARPSYNC", "HMMA", "BRA"]
    cell = ["BRA", "MUFU", "BRA", *["FFMA"] * 5, "BRA", "BRA", "STG", "STG"]
    assert opcodes(steps) == [*begin, *cell, "BAR", "BRA"]
    # A second matrix instruction lies behind a branch; that a predicate guards it is no matter.
    assert opcodes(steps, matrix=2) == [*begin, "HMMA", "FADD", "FADD", *cell, "BAR", "BRA"]
    # A warp that has no cell goes around it.
    idle = opcodes(steps, functions=0, posts=0, stores=0)
    assert idle == [*begin, "BRA", "BAR", "BRA"]


def test_work_that_no_way_does(steps: Any) -> None:
    """It is an error, and says what was found."""
    with pytest.raises(ValueError, match=r"'functions': 2.*the most found: .*'functions': 1"):
        opcodes(steps, functions=2)
    with pytest.raises(ValueError, match="no loop has matrix instructions"):
        steps.count(TEXT.replace("HMMA", "FFMA"), WORK)


def test_every_opcode_has_a_kind(steps: Any) -> None:
    """What the table of kinds does not know is told as such."""
    kinds = {i.opcode.split(".")[0]: i.kind() for i in steps.count(TEXT, WORK)}
    assert kinds["HMMA"] == "matrix"
    assert kinds["BRA"] == "branches"
    assert kinds["ISETP"] == "tests"
    assert "others" not in kinds.values()
    assert steps.Instruction("UNHEARD.OF", guarded=False).kind() == "others"
    assert steps.Instruction("LDG.E.128.STRONG.GPU", guarded=True).kind() == "words of others"
    assert steps.Instruction("LDGSTS.E.128", guarded=True).kind() == "other memory"
    waits = steps.Instruction("SYNCS.PHASECHK.TRANS64.TRYWAIT", guarded=False)
    assert waits.kind() == "words to a cluster"
    assert dict(zip(steps.WORK, waits.work()))["waits"]
    assert sum(waits.work()) == 1
