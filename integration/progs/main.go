// Command progs holds the self-checking live programs that Go can express: one
// for each kind of kernel object, run as progs NAME.
//
// A program sets its object up, writes /ctl/ready, waits for /ctl/go, checks
// that the object is what it was, and writes "ok" or "FAIL what: got, want" to
// /ctl/result. What the Go runtime keeps for itself (signal handlers, registers,
// fork) is in the C programs of folder c, which follow the same rules.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// ctl is where a program meets its test.
const ctl = "/ctl/"

// program sets an object up and returns how to check it.
type program struct {
	name string
	make func() (check func() error, err error)
}

func programs() []program {
	return []program{
		{"files", files},
		{"deleted", deleted},
		{"devices", devices},
		{"locks", locks},
		{"manyfds", manyFDs},
		{"pipes", pipes},
		{"fifos", fifos},
		{"eventfd", eventFD},
		{"epoll", epoll},
		{"timerfd", timerFD},
		{"signalfd", signalFD},
		{"memfd", memFD},
		{"unixpair", unixPair},
		{"unixlisten", unixListen},
		{"tcplisten", tcpListen},
		{"udp", udp},
		{"hostname", hostname},
		{"tmpfs", tmpfs},
		{"goruntime", goRuntime},
		{"refused", refused},
	}
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "survive" {
		survive()
	}
	runtime.LockOSThread()
	unix.Umask(0)
	name := ""
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	if name == "wait" {
		waitGo()
		return
	}
	for _, p := range programs() {
		if p.name == name {
			os.Exit(run(p))
		}
	}
	fmt.Fprintf(os.Stderr, "progs: no program %q\n", name)
	os.Exit(2)
}

func run(p program) int {
	check, err := p.make()
	if err != nil {
		return report(fmt.Errorf("set up %s: %w", p.name, err))
	}
	// The test looks at our descriptors as soon as ready is there: not this one.
	if err := first(put("getting-ready", "ready\n"), os.Rename(ctl+"getting-ready", ctl+"ready")); err != nil {
		return report(err)
	}
	for {
		_, err := os.Lstat(ctl + "go")
		if err == nil {
			return report(check())
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return report(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func put(name, text string) error { return os.WriteFile(ctl+name, []byte(text), 0o666) }

func report(err error) int {
	text := "ok\n"
	if err != nil {
		text = fmt.Sprintf("FAIL %v\n", err)
	}
	if put("result", text) != nil || err != nil {
		return 1
	}
	return 0
}

// eq is nil if what was got is what was wanted.
func eq[T comparable](what string, got, want T) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("%s: %v, want %v", what, got, want)
}

// wantErr is nil if a call ended with this error.
func wantErr(what string, got error, want error) error {
	if errors.Is(got, want) {
		return nil
	}
	return fmt.Errorf("%s: error %v, want %v", what, got, want)
}

// first is the first error of several checks.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
