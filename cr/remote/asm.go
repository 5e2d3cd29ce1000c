package remote

import "encoding/binary"

// Numbers of the general registers in x86-64 machine code.
const (
	rax = iota
	rcx
	rdx
	rbx
	rsp
	rbp
	rsi
	rdi
	r8
	r9
	r10
	r11
	r12
	r13
	r14
	r15
)

// asm appends position-independent machine code. Each method is one
// instruction; Intel SDM volume 2 has the encodings.
type asm struct{ b []byte }

func (a *asm) raw(b ...byte) { a.b = append(a.b, b...) }

func (a *asm) syscall() { a.raw(0x0f, 0x05) }

// imm is mov r32, imm32; it leaves the flags alone, unlike xor.
func (a *asm) imm(reg byte, v uint32) {
	if reg >= r8 {
		a.raw(0x41)
	}
	a.raw(0xb8 | reg&7)
	a.b = binary.LittleEndian.AppendUint32(a.b, v)
}

// move is mov r64, r64.
func (a *asm) move(to, from byte) {
	a.raw(0x48|from>>3<<2|to>>3, 0x89, 0xc0|from&7<<3|to&7)
}

// load is mov r64, [rip+disp32] of the data at offset at.
func (a *asm) load(reg byte, at int) {
	a.raw(0x48|reg>>3<<2, 0x8b, 0x05|reg&7<<3)
	a.rel32(at)
}

// lea is lea r64, [rip+disp32].
func (a *asm) lea(reg byte, at int) {
	a.raw(0x48|reg>>3<<2, 0x8d, 0x05|reg&7<<3)
	a.rel32(at)
}

// jumpTo is jmp [rip+disp32].
func (a *asm) jumpTo(at int) {
	a.raw(0xff, 0x25)
	a.rel32(at)
}

func (a *asm) rel32(at int) {
	a.b = binary.LittleEndian.AppendUint32(a.b, uint32(int32(at-len(a.b)-4)))
}

// entry is mov r64, [r12+disp8].
func (a *asm) entry(reg, disp byte) {
	a.raw(0x49|reg>>3<<2, 0x8b, 0x44|reg&7<<3, 0x24, disp)
}

// loop makes the r13 calls of the entries at r12 and returns the offset behind
// each call. r13 counts a call until its answer is stored.
func (a *asm) loop() (made int) {
	top := len(a.b)
	a.raw(0x4d, 0x85, 0xed) // test r13, r13
	a.raw(0x74, 0)          // jz done
	jz := len(a.b)
	for i, reg := range []byte{rax, rdi, rsi, rdx, r10, r8, r9} {
		a.entry(reg, byte(8*i))
	}
	a.syscall()
	made = len(a.b)
	a.raw(0x49, 0x89, 0x44, 0x24, entryResult) // mov [r12+56], rax
	a.raw(0x49, 0x83, 0xc4, entrySize)         // add r12, 64
	a.raw(0x49, 0xff, 0xcd)                    // dec r13
	a.raw(0xeb, byte(top-len(a.b)-2))          // jmp top
	a.b[jz-1] = byte(len(a.b) - jz)
	return made
}

// notify sends signal ebx to the running thread and returns the offset behind
// the call, where the task stands when we see the signal. The ids are asked for
// because they are those of the task's pid namespace.
func (a *asm) notify() int {
	a.imm(rax, sysGetpid)
	a.syscall()
	a.move(rdi, rax)
	a.imm(rax, sysGettid)
	a.syscall()
	a.move(rsi, rax)
	a.move(rdx, rbx)
	a.imm(rax, sysTgkill)
	a.syscall()
	return len(a.b)
}
