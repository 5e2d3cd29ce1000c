package task

import (
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// credsOf reads the credentials of a thread from its status file. Securebits are
// not there: secureBitsAsk completes them.
func credsOf(s *procfs.Status) *blob.Creds {
	return &blob.Creds{
		Uid: s.UID[0], Euid: s.UID[1], Suid: s.UID[2], Fsuid: s.UID[3],
		Gid: s.GID[0], Egid: s.GID[1], Sgid: s.GID[2], Fsgid: s.GID[3],
		Groups:         s.Groups,
		CapInheritable: s.CapInh, CapPermitted: s.CapPrm, CapEffective: s.CapEff,
		CapBounding: s.CapBnd, CapAmbient: s.CapAmb,
		NoNewPrivs: s.NoNewPrivs,
	}
}

func secureBitsAsk(c *blob.Creds) ask {
	return ask{
		what: "prctl PR_GET_SECUREBITS", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_GET_SECUREBITS},
		done: func(v uint64, _ []byte) error {
			c.Securebits = uint32(v)
			return nil
		},
	}
}

const capSetPCap = 1 << unix.CAP_SETPCAP

// setCredsAsks turns the credentials have, which the task has now, into want.
// The task makes the calls itself, so that the kernel judges each: a restored
// task can only ever get what the blank was allowed to become. The order keeps a
// capability as long as a later call may need it.
func setCredsAsks(have, want *blob.Creds) []ask {
	var asks []ask
	if !slices.Equal(have.Groups, want.Groups) {
		list := make([]byte, 0, 4*len(want.Groups)+4)
		for _, g := range want.Groups {
			list = le.AppendUint32(list, g)
		}
		asks = append(asks, ask{
			what: fmt.Sprintf("setgroups %v", want.Groups), nr: unix.SYS_SETGROUPS,
			args: [6]uint64{uint64(len(want.Groups))}, in: append(list, 0, 0, 0, 0), inArg: 1,
		})
	}
	if ids(have.Gid, have.Egid, have.Sgid) != ids(want.Gid, want.Egid, want.Sgid) {
		asks = append(asks, ask{
			what: fmt.Sprintf("setresgid %d %d %d", want.Gid, want.Egid, want.Sgid), nr: unix.SYS_SETRESGID,
			args: [6]uint64{uint64(want.Gid), uint64(want.Egid), uint64(want.Sgid)},
		})
	}
	asks = append(asks, dropBoundingAsks(have.CapBounding&^want.CapBounding)...)
	uidsChange := ids(have.Uid, have.Euid, have.Suid) != ids(want.Uid, want.Euid, want.Suid)
	if uidsChange {
		asks = append(asks,
			ask{what: "prctl PR_SET_KEEPCAPS", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_KEEPCAPS, 1}},
			ask{
				what: fmt.Sprintf("setresuid %d %d %d", want.Uid, want.Euid, want.Suid), nr: unix.SYS_SETRESUID,
				args: [6]uint64{uint64(want.Uid), uint64(want.Euid), uint64(want.Suid)},
			})
	}
	asks = append(asks, fsIDAsks(want)...)
	return append(asks, capAsks(have, want, uidsChange)...)
}

func ids(r, e, s uint32) [3]uint32 { return [3]uint32{r, e, s} }

func dropBoundingAsks(drop uint64) []ask {
	var asks []ask
	for drop != 0 {
		c := bits.TrailingZeros64(drop)
		drop &^= 1 << c
		asks = append(asks, ask{
			what: fmt.Sprintf("prctl PR_CAPBSET_DROP %d", c), nr: unix.SYS_PRCTL,
			args: [6]uint64{unix.PR_CAPBSET_DROP, uint64(c)},
		})
	}
	return asks
}

// fsIDAsks sets the file system ids where they differ from the effective ones,
// which setresuid and setresgid make them follow.
func fsIDAsks(want *blob.Creds) []ask {
	anything := func(uint64, []byte) error { return nil } // both calls return the old id
	var asks []ask
	if want.Fsgid != want.Egid {
		asks = append(asks, ask{what: "setfsgid", nr: unix.SYS_SETFSGID, args: [6]uint64{uint64(want.Fsgid)}, done: anything})
	}
	if want.Fsuid != want.Euid {
		asks = append(asks, ask{what: "setfsuid", nr: unix.SYS_SETFSUID, args: [6]uint64{uint64(want.Fsuid)}, done: anything})
	}
	return asks
}

// capAsks sets securebits and the capability sets.
func capAsks(have, want *blob.Creds, uidsChanged bool) []ask {
	same := !uidsChanged && have.CapPermitted == want.CapPermitted && have.CapEffective == want.CapEffective &&
		have.CapInheritable == want.CapInheritable && have.CapAmbient == want.CapAmbient && have.Securebits == want.Securebits
	if same {
		return nil
	}
	var asks []ask
	if have.Securebits != want.Securebits || uidsChanged {
		if have.CapPermitted&capSetPCap != 0 && have.Securebits != want.Securebits {
			// A changed uid has emptied the effective set: raise what is needed.
			asks = append(asks, capsetAsk(have.CapPermitted, have.CapPermitted, have.CapInheritable))
			asks = append(asks, ask{
				what: fmt.Sprintf("prctl PR_SET_SECUREBITS %#x", want.Securebits), nr: unix.SYS_PRCTL,
				args: [6]uint64{unix.PR_SET_SECUREBITS, uint64(want.Securebits)},
			})
		} else {
			keep := uint64(0)
			if want.Securebits&secbitKeepCaps != 0 {
				keep = 1
			}
			asks = append(asks, ask{what: "prctl PR_SET_KEEPCAPS", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_KEEPCAPS, keep}})
		}
	}
	asks = append(asks, capsetAsk(want.CapEffective, want.CapPermitted, want.CapInheritable))
	return append(asks, ambientAsks(want)...)
}

const secbitKeepCaps = 1 << 4

func ambientAsks(want *blob.Creds) []ask {
	asks := []ask{{
		what: "prctl PR_CAP_AMBIENT clear", nr: unix.SYS_PRCTL,
		args: [6]uint64{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL},
	}}
	for left := want.CapAmbient; left != 0; {
		c := bits.TrailingZeros64(left)
		left &^= 1 << c
		asks = append(asks, ask{
			what: fmt.Sprintf("prctl PR_CAP_AMBIENT raise %d", c), nr: unix.SYS_PRCTL,
			args: [6]uint64{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uint64(c)},
		})
	}
	return asks
}

// capsetAsk lends the call its header and its data, one behind the other.
func capsetAsk(effective, permitted, inheritable uint64) ask {
	b := le.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	b = le.AppendUint32(b, 0) // the calling thread
	for shift := 0; shift <= 32; shift += 32 {
		for _, set := range []uint64{effective, permitted, inheritable} {
			b = le.AppendUint32(b, uint32(set>>shift))
		}
	}
	return ask{
		what: fmt.Sprintf("capset effective %x permitted %x inheritable %x", effective, permitted, inheritable),
		nr:   unix.SYS_CAPSET, in: b, inArg: 0, alsoArg: 1, alsoAt: 8,
	}
}
