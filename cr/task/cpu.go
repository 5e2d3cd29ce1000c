package task

import (
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// Regset notes (include/uapi/linux/elf.h).
const (
	notePRStatus  = 1
	noteX86XState = 0x202
)

// xcr0At is where the kernel leaves XCR0 in the software-reserved bytes of the
// xstate regset (arch/x86/include/asm/user.h).
const xcr0At = 464

// XFeatures returns the processor features that an xstate was saved with.
func XFeatures(xstate []byte) uint64 {
	if len(xstate) < xcr0At+8 {
		return 0
	}
	return le.Uint64(xstate[xcr0At:])
}

// captureCPU reads the processor state that ptrace shows.
func captureCPU(t *tracer.Task, th *blob.Thread) (err error) {
	if th.Gpr, err = t.Regset(notePRStatus); err != nil {
		return fmt.Errorf("registers: %w", err)
	}
	if th.Xstate, err = t.Regset(noteX86XState); err != nil {
		return fmt.Errorf("xstate: %w", err)
	}
	debug, err := t.DebugRegs()
	if err != nil {
		return fmt.Errorf("debug registers: %w", err)
	}
	if debug[7]&0xff != 0 { // dr7 enables any
		th.Debug = debug[:]
	}
	return nil
}

// restoreCPU gives a stopped thread its processor state: the last thing before
// it goes on, for every remote call disturbs the general registers.
func restoreCPU(t *tracer.Task, th *blob.Thread) error {
	have, err := t.Regset(noteX86XState)
	if err != nil {
		return fmt.Errorf("xstate: %w", err)
	}
	if lack := XFeatures(th.Xstate) &^ XFeatures(have); lack != 0 {
		return fmt.Errorf("this processor lacks the features %#x: %w", lack, errs.ErrHost)
	}
	if err := t.SetRegset(noteX86XState, th.Xstate); err != nil {
		return fmt.Errorf("xstate: %w", err)
	}
	if len(th.Debug) > 0 {
		if len(th.Debug) != 8 {
			return fmt.Errorf("%d debug registers: %w", len(th.Debug), errs.ErrCorrupt)
		}
		if err := t.SetDebugRegs([8]uint64(th.Debug)); err != nil {
			return fmt.Errorf("debug registers: %w", err)
		}
	}
	if err := t.SetRegset(notePRStatus, th.Gpr); err != nil {
		return fmt.Errorf("registers: %w", err)
	}
	return nil
}
