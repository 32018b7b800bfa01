"""What a file holds: ELF images, functions, disassembly, call frame information, symbols."""
