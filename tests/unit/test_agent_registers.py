"""The agent runs inside other programs' functions: it may touch general registers only, which the hot path keeps."""

from iced_x86 import Decoder, InstructionInfoFactory, RegisterExt

from callscope.binary.elf import read_image
from callscope.native import AGENT_NAME, library_path


def test_agent_uses_no_vector_or_floating_point_registers() -> None:
    image = read_image(library_path(AGENT_NAME))
    information = InstructionInfoFactory()
    seen = 0
    for section in image.code_sections:
        data = bytes(image.data[section.offset : section.offset + section.size])
        for instruction in Decoder(64, data, ip=section.rva):
            seen += 1
            registers = [used.register for used in information.info(instruction).used_registers()]
            kinds = (RegisterExt.is_vector_register, RegisterExt.is_mm, RegisterExt.is_st)
            wrong = [register for register in registers if any(kind(register) for kind in kinds)]
            assert not wrong, f"{instruction} at {instruction.ip:#x}"
    assert seen > 1000
