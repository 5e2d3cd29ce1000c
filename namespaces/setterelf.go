package namespaces

import (
	"debug/elf"
	"encoding/binary"
)

// setterCode is the helper's program, position independent x86-64. A helper in
// Go would take a pid of the container's for every thread of its runtime. It
// needs no memory but its stack: at rsp the request, at rsp+32 the answer.
//
//	for n := read(0, req, 32); n > 0; n = read(0, req, 32) {
//		answer = pwrite64(3, req, n, 0)
//		write(1, &answer, 8)
//	}
//	exit(0)
func setterCode() []byte {
	return []byte{
		0x48, 0x83, 0xec, 0x40, //       00 sub  rsp, 64
		// next:
		0x31, 0xc0, //                   04 xor  eax, eax       read is 0
		0x31, 0xff, //                   06 xor  edi, edi       from standard input
		0x48, 0x89, 0xe6, //             08 mov  rsi, rsp       to the request
		0xba, 0x20, 0x00, 0x00, 0x00, // 0b mov  edx, 32
		0x0f, 0x05, //                   10 syscall
		0x48, 0x85, 0xc0, //             12 test rax, rax
		0x7e, 0x2f, //                   15 jle  end            nobody asks any more
		0x48, 0x89, 0xc2, //             17 mov  rdx, rax       as many bytes as were read
		0xb8, 0x12, 0x00, 0x00, 0x00, // 1a mov  eax, 18        pwrite64
		0xbf, 0x03, 0x00, 0x00, 0x00, // 1f mov  edi, 3         ns_last_pid; rsi still is the request
		0x45, 0x31, 0xd2, //             24 xor  r10d, r10d     at offset 0
		0x0f, 0x05, //                   27 syscall
		0x48, 0x89, 0x44, 0x24, 0x20, // 29 mov  [rsp+32], rax
		0xb8, 0x01, 0x00, 0x00, 0x00, // 2e mov  eax, 1         write
		0xbf, 0x01, 0x00, 0x00, 0x00, // 33 mov  edi, 1         to standard output
		0x48, 0x8d, 0x74, 0x24, 0x20, // 38 lea  rsi, [rsp+32]  the answer
		0xba, 0x08, 0x00, 0x00, 0x00, // 3d mov  edx, 8
		0x0f, 0x05, //                   42 syscall
		0xeb, 0xbe, //                   44 jmp  next
		// end:
		0xb8, 0x3c, 0x00, 0x00, 0x00, // 46 mov  eax, 60        exit
		0x31, 0xff, //                   4b xor  edi, edi       with 0
		0x0f, 0x05, //                   4d syscall
	}
}

const (
	setterBase = 0x400000 // where the file is mapped: headers and code in one segment
	ehdrSize   = 64       // of struct Elf64_Ehdr
	phdrSize   = 56       // of struct Elf64_Phdr
)

// setterELF returns the whole program file: an ELF header, one loadable segment
// that is the file itself, the code.
func setterELF() []byte {
	code := setterCode()
	size := uint64(ehdrSize + phdrSize + len(code))
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT), 15: 0}
	b = le.AppendUint16(b, uint16(elf.ET_EXEC))
	b = le.AppendUint16(b, uint16(elf.EM_X86_64))
	b = le.AppendUint32(b, uint32(elf.EV_CURRENT))
	b = le.AppendUint64(b, setterBase+ehdrSize+phdrSize) // entry
	b = le.AppendUint64(b, ehdrSize)                     // program headers follow
	b = le.AppendUint64(b, 0)                            // no section headers
	b = le.AppendUint32(b, 0)                            // flags
	b = le.AppendUint16(b, ehdrSize)
	b = le.AppendUint16(b, phdrSize)
	b = le.AppendUint16(b, 1)       // one program header
	b = append(b, 0, 0, 0, 0, 0, 0) // sections: size, count, names
	b = le.AppendUint32(b, uint32(elf.PT_LOAD))
	b = le.AppendUint32(b, uint32(elf.PF_R|elf.PF_X))
	b = le.AppendUint64(b, 0)          // from the start of the file
	b = le.AppendUint64(b, setterBase) // virtual address
	b = le.AppendUint64(b, setterBase) // physical address, unused
	b = le.AppendUint64(b, size)       // in the file
	b = le.AppendUint64(b, size)       // in memory
	b = le.AppendUint64(b, 0x1000)     // alignment
	return append(b, code...)
}
