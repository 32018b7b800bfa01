"""The agent runs inside other programs' functions: it may change general registers, which the hot path keeps, and such
vector registers as the same function has stored before and loads again before it returns.
"""

import pytest
from iced_x86 import Decoder, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, RegisterExt

from callscope.binary.open import open_image
from callscope.native import AGENT_NAME, WINDOWS_AGENT_NAME, library_path

KEEPERS = {Mnemonic.XSAVE64, Mnemonic.XRSTOR64}
"""what saves and restores them"""
READERS = {Mnemonic.FLD, Mnemonic.FSTP}
"""a result of type long double is copied by pushing and popping it once more"""


@pytest.mark.parametrize("name", [AGENT_NAME, WINDOWS_AGENT_NAME])
def test_agent_changes_no_vector_or_floating_point_registers(name: str) -> None:
    image = open_image(library_path(name))
    information = InstructionInfoFactory()
    seen = 0
    restored: dict[int, bool] = {}  # of registers stored since the last return: whether a load wrote it last
    for section in image.code_sections:
        for instruction in Decoder(64, bytes(image.section_data(section)), ip=section.rva):
            seen += 1
            if instruction.mnemonic in KEEPERS or instruction.mnemonic in READERS:
                continue
            used = information.info(instruction).used_registers()
            registers = [register.register for register in used if register.access != OpAccess.READ]
            kinds = (RegisterExt.is_vector_register, RegisterExt.is_mm, RegisterExt.is_st)
            changed = [register for register in registers if any(kind(register) for kind in kinds)]
            is_move = instruction.mnemonic == Mnemonic.MOVDQU
            if is_move and instruction.op0_kind == OpKind.MEMORY:
                restored.setdefault(instruction.op1_register, True)
            wrong = [register for register in changed if register not in restored]
            assert not wrong, f"{instruction} at {instruction.ip:#x}"
            restored |= dict.fromkeys(changed, is_move)
            if instruction.flow_control == FlowControl.RETURN:
                assert all(restored.values()), f"a return at {instruction.ip:#x} without what was stored"
                restored.clear()
    assert seen > 1000
