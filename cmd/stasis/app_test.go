package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/ociruntime"
)

// fake is an app whose engine only notes what it was asked for.
type fake struct {
	app
	stdout, stderr bytes.Buffer
	checkpointed   *cr.CheckpointOptions
	restored       *cr.RestoreOptions
	obstacles      []error
	err            error
	status         int
	runtime        string // path of a runtime script
}

// runtimeScript says how it was started.
const runtimeScript = `#!/bin/sh
echo "STASIS_RUNTIME=$STASIS_RUNTIME"
for a in "$@"; do echo "arg $a"; done
exit 7
`

func newFake(t *testing.T) *fake {
	t.Helper()
	bin := t.TempDir()
	f := &fake{runtime: filepath.Join(bin, "runc")}
	if err := os.WriteFile(f.runtime, []byte(runtimeScript), 0o700); err != nil {
		t.Fatal(err)
	}
	f.app = app{out: &f.stdout, err: &f.stderr, env: []string{"PATH=" + bin}}
	f.engine = engine{
		checkpoint: func(_ context.Context, o cr.CheckpointOptions) (cr.Stats, error) {
			f.checkpointed = &o
			o.Log.Info("a step", slog.Int("n", 1))
			return cr.Stats{Frozen: time.Millisecond, PagesBytes: 8192}, f.err
		},
		restore: func(_ context.Context, o cr.RestoreOptions) (int, error) {
			f.restored = &o
			return f.status, f.err
		},
		check:  func(context.Context, cr.CheckpointOptions) ([]error, error) { return f.obstacles, f.err },
		verify: cr.Verify, flatten: cr.Flatten, servePages: cr.ServePages,
	}
	f.exec = func(path string, argv, env []string) error {
		cmd := exec.CommandContext(t.Context(), path, argv[1:]...)
		cmd.Env, cmd.Stdout = env, &f.stdout
		return cmd.Run()
	}
	return f
}

func (f *fake) do(t *testing.T, args ...string) int {
	t.Helper()
	return f.run(t.Context(), args)
}

func TestPassThrough(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"create --bundle b id", "create --bundle b id"},
		{
			"--root r --log l --log-format json --systemd-cgroup state id",
			"--root r --log l --log-format json --systemd-cgroup state id",
		},
		{"--rootless=auto -debug features", "--rootless=auto -debug features"},
		{"kill --all id KILL", "kill --all id KILL"},
		{"exec --runtime x id -- ls", "exec --runtime x id -- ls"},
		{"unknown --help", "unknown --help"},
		{"help create", "help create"},
	} {
		for _, ours := range []string{"", "--runtime", "--runtime=", "env"} {
			t.Run(tt.args+" "+ours, func(t *testing.T) {
				t.Chdir(t.TempDir()) // where a relative --log goes
				f := newFake(t)
				args := strings.Fields(tt.args)
				set, seen := "", tt.want
				switch ours {
				case "--runtime":
					args = append([]string{"--runtime", f.runtime}, args...)
				case "--runtime=":
					args = append([]string{"--debug", "--runtime=" + f.runtime}, args...)
					seen = "--debug " + seen
				case "env":
					set = f.runtime
					f.env = []string{ociruntime.Env + "=" + set}
				}
				if status := f.do(t, args...); status != 1 {
					t.Errorf("status %d of a runtime that could not be executed", status)
				}
				want := "STASIS_RUNTIME=" + set + "\n"
				for a := range strings.FieldsSeq(seen) {
					want += "arg " + a + "\n" //nolint:perfsprint // a few words
				}
				if got := f.stdout.String(); got != want {
					t.Errorf("the runtime saw\n%swant\n%s", got, want)
				}
			})
		}
	}
}

// TestFindRuntime: the flag comes before the environment.
func TestFindRuntime(t *testing.T) {
	f := newFake(t)
	f.env = []string{ociruntime.Env + "=/nowhere"}
	if got, err := f.findRuntime(&global{runtime: f.runtime}); got != f.runtime || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := f.findRuntime(&global{}); err == nil {
		t.Errorf("%q", got)
	}
	f.env = []string{"PATH=/nowhere"}
	if got, err := f.findRuntime(&global{}); err == nil || !strings.Contains(err.Error(), "--runtime") {
		t.Errorf("%q, %v: does not say what would help", got, err)
	}
}

// TestCheckpointFlags sends what containerd, podman and CRI-O send.
func TestCheckpointFlags(t *testing.T) {
	work, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	f := newFake(t)
	args := fmt.Sprintf("--root /r --log %s/log.json --log-format json --systemd-cgroup checkpoint --image-path %s "+
		"--work-path %[1]s --tcp-established -ext-unix-sk --shell-job --file-locks --empty-ns network "+
		"--manage-cgroups-mode soft --link-remap --auto-dedup --status-fd 5 --tcp-skip-in-flight "+
		"--leave-running c1", work, image)
	if status := f.do(t, strings.Fields(args)...); status != 0 {
		t.Fatalf("status %d: %s", status, f.stderr.String())
	}
	o := f.checkpointed
	if o.ID != "c1" || o.Root != "/r" || o.Runtime != f.runtime || o.ImageDir != image || o.WorkDir != work ||
		!o.LeaveRunning || !o.TCPEstablished || !o.FileLocks || !o.ExtUnixSk || !o.ShellJob {
		t.Errorf("options %+v", o)
	}
	want := []string{"--root", "/r", "--log", work + "/log.json", "--log-format", "json", "--systemd-cgroup"}
	if !slices.Equal(o.RuntimeArgs, want) {
		t.Errorf("runtime's arguments %q, want %q", o.RuntimeArgs, want)
	}
	if f.stderr.Len() > 0 {
		t.Errorf("stderr: %s", f.stderr.String())
	}
	for _, name := range []string{"dump.log", "stats-dump"} {
		if st, err := os.Stat(filepath.Join(work, name)); err != nil && st.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckpointFinishes(t *testing.T) {
	path := t.TempDir()
	dirtest.Write(t, path)
	f := newFake(t)
	if status := f.do(t, "checkpoint", "--image-path", path, "c1"); status != 0 {
		t.Fatalf("status %d: %s", status, f.stderr.String())
	}
	for _, name := range []string{"descriptors.json", "inventory.img", "dump.log", "stats-dump"} {
		if _, err := os.Stat(filepath.Join(path, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestRestoreFlags(t *testing.T) {
	work := t.TempDir()
	f := newFake(t)
	f.status = 42
	args := "restore --image-path i --work-path " + work + " --detach --pid-file p -no-subreaper --no-pivot " +
		"--console-socket s --bundle b --no-new-keyring --tcp-close --parent-path x --network-lock y --file-locks " +
		"--tcp-established --ext-unix-sk --shell-job --manage-cgroups-mode ignore --auto-dedup c1"
	if status := f.do(t, strings.Fields(args)...); status != 42 {
		t.Fatalf("status %d: %s", status, f.stderr.String())
	}
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	o := f.restored
	for what, got := range map[string]string{"i": o.ImageDir, "p": o.PidFile, "s": o.ConsoleSocket, "b": o.Bundle} {
		if want := filepath.Join(cwd, what); got != want {
			t.Errorf("path %q, want %q", got, want)
		}
	}
	if o.ID != "c1" || !o.Detach || !o.NoSubreaper || !o.NoPivot || o.WorkDir != work {
		t.Errorf("options %+v", o)
	}
}

// TestRestoreLazy: a flag or the bundle asks for it.
func TestRestoreLazy(t *testing.T) {
	for _, tt := range []struct {
		config, flag string
		want         bool
	}{
		{`{}`, "", false},
		{`{}`, "--lazy-pages", true},
		{`{"annotations":{"stasis.dev/lazy-pages":"true"}}`, "", true},
		{`{"annotations":{"stasis.dev/lazy-pages":"1"}}`, "", false},
	} {
		bundle := t.TempDir()
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(tt.config), 0o600); err != nil {
			t.Fatal(err)
		}
		f := newFake(t)
		args := append([]string{"restore", "--detach", "--work-path", t.TempDir(), "--bundle", bundle}, strings.Fields(tt.flag)...)
		if status := f.do(t, append(args, "c1")...); status != 0 {
			t.Fatalf("%s %s: status %d: %s", tt.config, tt.flag, status, f.stderr.String())
		}
		if f.restored.LazyPages != tt.want {
			t.Errorf("%s %s: lazy %v", tt.config, tt.flag, f.restored.LazyPages)
		}
	}
}

func TestRestoreLabels(t *testing.T) {
	bundle := t.TempDir()
	config := `{"process":{"selinuxLabel":"a:b:c","apparmorProfile":"prof"},"linux":{"mountLabel":"m:l"}}`
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for flags, want := range map[string]string{
		"--lsm-profile selinux:a:b:c --lsm-mount-context m:l": "",
		"--lsm-profile=apparmor:prof":                         "",
		"--lsm-profile apparmor:unconfined":                   `asks for "prof"`,
		"--lsm-profile selinux":                               "want TYPE:NAME",
		"--lsm-profile smack:x":                               "want apparmor or selinux",
		"--lsm-mount-context other":                           `asks for "m:l"`,
	} {
		f := newFake(t)
		args := append([]string{"restore", "--work-path", t.TempDir(), "--bundle", bundle}, strings.Fields(flags)...)
		status := f.do(t, append(args, "c1")...)
		if (status == 0) != (want == "") || !strings.Contains(f.stderr.String(), want) {
			t.Errorf("%s: status %d, %s", flags, status, f.stderr.String())
		}
	}
}

// TestRestoreForwards checks that a signal for an attached restore reaches the
// container, through the runtime, and that the ended container is removed.
func TestRestoreForwards(t *testing.T) {
	f := newFake(t)
	saw := filepath.Join(t.TempDir(), "saw")
	script := "#!/bin/sh\necho \"$@\" >>" + saw + "\n"
	if err := os.WriteFile(f.runtime, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	f.env = append(f.env, ociruntime.Env+"="+f.runtime)
	f.engine.restore = func(ctx context.Context, _ cr.RestoreOptions) (int, error) {
		if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
			return 0, err
		}
		for ctx.Err() == nil {
			if st, err := os.Stat(saw); err == nil && st.Size() > 0 {
				return 138, nil
			}
			runtime.Gosched()
		}
		return 0, ctx.Err()
	}
	if status := f.do(t, "--root", "/r", "restore", "--work-path", t.TempDir(), "c1"); status != 138 {
		t.Errorf("status %d: %s", status, f.stderr.String())
	}
	b, err := os.ReadFile(saw)
	want := fmt.Sprintf("--root /r kill c1 %d\n--root /r delete --force c1\n", syscall.SIGUSR1)
	if err != nil || string(b) != want {
		t.Errorf("the runtime saw %q (%v), want %q", b, err, want)
	}
}

// TestErrors checks that a failure is one line, first and alone on stderr, and
// the last record of the log.
func TestErrors(t *testing.T) {
	both := errors.Join(
		&errs.Error{Op: "capture", PID: 7, Obj: errs.FD(3), Err: errs.ErrUnsupported},
		errors.New("and\x1b[2J this"))
	const msg = `capture pid 7 fd 3: not supported; and\x1b[2J this`
	for _, verb := range []string{"checkpoint", "restore", "check"} {
		for _, format := range []string{"text", "json", ""} {
			t.Run(verb+" "+format, func(t *testing.T) {
				work := t.TempDir()
				log := filepath.Join(work, "the.log")
				f := newFake(t)
				f.err = both
				args := []string{"--log", log}
				if format != "" {
					args = append(args, "--log-format", format)
				}
				args = append(args, verb)
				if verb != "check" {
					args = append(args, "--work-path", work, "--image-path", work)
				}
				if status := f.do(t, append(args, "c1")...); status != 1 {
					t.Errorf("status %d", status)
				}
				if got, want := f.stderr.String(), "stasis: "+msg+"\n"; got != want {
					t.Errorf("stderr %q, want %q", got, want)
				}
				last := lastLine(t, log)
				if format == "json" {
					last = jsonMessage(t, last)
				}
				if !strings.Contains(last, "pid 7 fd 3: not supported; and") {
					t.Errorf("log %q", last)
				}
				if verb == "check" {
					return
				}
				name := map[string]string{"checkpoint": "dump.log", "restore": "restore.log"}[verb]
				got := lastLine(t, filepath.Join(work, name))
				if !strings.Contains(got, "Error (stasis): capture pid 7") {
					t.Errorf("%s: %q", name, got)
				}
			})
		}
	}
}

func lastLine(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func jsonMessage(t *testing.T, line string) string {
	t.Helper()
	var r struct{ Level, Msg, Time string }
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if _, err := time.Parse(time.RFC3339, r.Time); err != nil || r.Level != "error" {
		t.Errorf("%s: %v", line, err)
	}
	return r.Msg
}

// TestUsage has the command lines that never reach the engine.
func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args   string
		status int
		out    string
		err    string
	}{
		{args: "", out: "COMMANDS:"},
		{args: "--help", out: "--systemd-cgroup"},
		{args: "help", out: "checkpoint a running container"},
		{args: "help checkpoint", out: "--leave-running"},
		{args: "checkpoint --help", out: "--image-path value"},
		{args: "restore --help", out: "--bundle value, -b value"},
		{args: "restore -h", out: "--lsm-mount-context value"},
		{args: "--version", out: "stasis version "},
		{args: "-v", out: "\nspec: 1."},
		{args: "version", out: "\ngo: go1."},
		{args: "restore --lsm-mount-context", status: 1, err: "flag needs an argument: -lsm-mount-context"},
		{args: "checkpoint", status: 1, err: `"checkpoint" requires exactly 1 argument(s)`},
		{args: "restore a b", status: 1, err: `"restore" requires exactly 1 argument(s)`},
		{args: "checkpoint --nope id", status: 1, err: "flag provided but not defined: -nope"},
		{args: "--nope checkpoint id", status: 1, err: "flag provided but not defined: -nope"},
		{args: "--log-format xml checkpoint id", status: 1, err: "invalid log-format: xml"},
		{args: "--log-format json checkpoint", status: 1, err: `{"level":"error","msg":"\"checkpoint\" requires`},
		{args: "checkpoint ../id", status: 1, err: `invalid container ID "../id"`},
		{args: "checkpoint ..", status: 1, err: "invalid container ID"},
		{args: "checkpoint --lazy-pages id", status: 1, err: "--lazy-pages is not supported yet"},
		{args: "checkpoint --page-server a:1 id", status: 1, err: `--page-server is not supported yet: memory is written to --image-path, and "stasis page-server" gives it`},
		{args: "restore --page-server h:1 id", status: 1, err: "--page-server needs --tls-cert"},
		{args: "restore --page-server h:1 --tls-cert c --tls-key k id", status: 1, err: "--page-server needs --tls-ca"},
		{args: "restore --tls-key k id", status: 1, err: "--tls-key is of use with --page-server only"},
		{args: "restore --page-server-timeout 5 id", status: 1, err: "invalid --page-server-timeout: time: missing unit"},
		{args: "restore --page-server-timeout -1s id", status: 1, err: "it must be more than 0"},
		{args: "restore --help", out: "--page-server value"},
		{args: "page-server", status: 1, err: `"page-server" requires exactly 1 argument(s)`},
		{args: "page-server --listen h:1 --cert c --key k d", status: 1, err: "--ca is missing"},
		{args: "page-server --listen h:1 --cert c --key k --ca /nowhere /nowhere", status: 1, err: "certificate c with key k"},
		{args: "help page-server", out: "SIGTERM"},
		{args: "checkpoint --empty-ns pid id", status: 1, err: `invalid value "pid" for --empty-ns: want network`},
		{args: "checkpoint --manage-cgroups-mode no id", status: 1, err: "want soft, full, strict, ignore"},
		{args: "inspect", status: 1, err: `"inspect" requires exactly 1 argument(s)`},
		{args: "inspect /nowhere", status: 1, err: "no such file"},
		{args: "verify", status: 1, err: `"verify" requires exactly 1 argument(s)`},
		{args: "verify /nowhere", status: 1, err: "no such file"},
		{args: "help verify", out: "every byte"},
		{args: "flatten x", status: 1, err: `"flatten" requires exactly 2 argument(s)`},
		{args: "flatten /nowhere x", status: 1, err: "no such file"},
		{args: "help flatten", out: "stands alone"},
		{args: "checkpoint --compress lz4 id", status: 1, err: `invalid value "lz4" for --compress: want none, s2, zstd`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			f := newFake(t)
			if status := f.do(t, strings.Fields(tt.args)...); status != tt.status {
				t.Errorf("status %d, want %d", status, tt.status)
			}
			if got := f.stdout.String(); !strings.Contains(got, tt.out) || (tt.out == "" && got != "") {
				t.Errorf("stdout %q, want %q in it", got, tt.out)
			}
			got := f.stderr.String()
			if !strings.Contains(got, tt.err) || (tt.err == "" && got != "") || strings.Count(got, "\n") > 1 {
				t.Errorf("stderr %q, want %q in it", got, tt.err)
			}
			if f.checkpointed != nil || f.restored != nil {
				t.Error("the engine was called")
			}
		})
	}
}

// TestUsageIsLogged: containerd reads the log even where the arguments were
// wrong.
func TestUsageIsLogged(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log.json")
	f := newFake(t)
	f.do(t, "--log", log, "--log-format", "json", "restore", "--nope", "id")
	if got := jsonMessage(t, lastLine(t, log)); got != "flag provided but not defined: -nope" {
		t.Errorf("logged %q", got)
	}
}

func TestCheck(t *testing.T) {
	several := []error{
		errors.New("pid 1: a"),
		errors.Join(errors.New("pid 2: b"), errors.New("pid 3: c")),
		fmt.Errorf("pid 4: %w, %w", errors.New("d"), errors.New("e")),
	}
	for _, tt := range []struct {
		args   string
		found  []error
		status int
		want   string
	}{
		{"check c1", nil, 0, "c1 can be checkpointed\n"},
		{"check c1", several, 1, "pid 1: a\npid 2: b\npid 3: c\npid 4: d, e\n"},
		{"check --json c1", nil, 0, "{\n  \"id\": \"c1\",\n  \"ok\": true,\n  \"obstacles\": []\n}\n"},
		{
			"check c1 --json", several[:1], 1,
			"{\n  \"id\": \"c1\",\n  \"ok\": false,\n  \"obstacles\": [\n    \"pid 1: a\"\n  ]\n}\n",
		},
	} {
		f := newFake(t)
		f.obstacles = tt.found
		if status := f.do(t, strings.Fields(tt.args)...); status != tt.status || f.stdout.String() != tt.want {
			t.Errorf("%s: status %d, %q (%s)", tt.args, status, f.stdout.String(), f.stderr.String())
		}
	}
}
