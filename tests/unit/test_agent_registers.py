"""The agent runs inside other programs' functions: it may touch general registers only, which the hot path keeps."""

import pytest
from iced_x86 import Decoder, InstructionInfoFactory, Mnemonic, RegisterExt

from callscope.binary.open import open_image
from callscope.native import AGENT_NAME, WINDOWS_AGENT_NAME, library_path

KEEPERS = {Mnemonic.XSAVE64, Mnemonic.XRSTOR64}
"""what saves and restores them"""


@pytest.mark.parametrize("name", [AGENT_NAME, WINDOWS_AGENT_NAME])
def test_agent_uses_no_vector_or_floating_point_registers(name: str) -> None:
    image = open_image(library_path(name))
    information = InstructionInfoFactory()
    seen = 0
    for section in image.code_sections:
        for instruction in Decoder(64, bytes(image.section_data(section)), ip=section.rva):
            seen += 1
            if instruction.mnemonic in KEEPERS:
                continue
            registers = [used.register for used in information.info(instruction).used_registers()]
            kinds = (RegisterExt.is_vector_register, RegisterExt.is_mm, RegisterExt.is_st)
            wrong = [register for register in registers if any(kind(register) for kind in kinds)]
            assert not wrong, f"{instruction} at {instruction.ip:#x}"
    assert seen > 1000
