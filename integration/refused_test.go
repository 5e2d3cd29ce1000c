//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/integration/progs/box"
)

// refusal is an object that can't be saved, and a word that the refusal must
// have in it.
type refusal struct {
	name string
	word string
	caps []string
	c    bool // from integration/progs/c, under the same name
}

func refusals() []refusal {
	admin := []string{"CAP_SYS_ADMIN"}
	return []refusal{
		{name: "inotify", word: "inotify"},
		{name: "netlink", word: "netlink"},
		{name: "packet", word: "packet"},
		{name: "tcp", word: "tcp"},
		{name: "flight", word: "descriptor"},
		{name: "sysv", word: "system v"},
		{name: "mqueue", word: "queue"},
		{name: "traced", word: "trace"},
		{name: "mounted", word: "/ctl/mnt", caps: admin},
		{name: "pidns", word: "pid namespace", caps: admin},
		{name: "pidfd", word: "pidfd"},
		{name: "lock", word: "lock"},
		{name: "packets", word: "o_direct"},
		{name: "deadleader", word: "main thread has ended", c: true},
		{name: "sharedvm", word: "shares its memory with pid", c: true},
	}
}

// TestRefused tries to checkpoint what can't be saved: the checkpoint must fail
// with one line that names the object, check must say the same, and the container
// must not notice.
func TestRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		objectsNeed(t, "root")
	}
	progs := buildObjects(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: objectEngine(t)}
	for _, r := range refusals() {
		t.Run(r.name, func(t *testing.T) { refuse(t, e, progs, r) })
	}
}

func refuse(t *testing.T, e box.Engine, progs box.Programs, r refusal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	args := []string{"/bin/progs", "refused", r.name}
	if r.c {
		args = []string{"/bin/cprogs", r.name}
	}
	c := box.Config{Args: args, Caps: append(box.DefaultCaps(), r.caps...)}
	b := startBox(ctx, t, t.TempDir(), fmt.Sprintf("refused-%d-%s", os.Getpid(), r.name), e, progs, c)
	was, err := b.Look(box.What{})
	if err != nil {
		t.Fatal(err)
	}
	refusedBy(t, "checkpoint", r, b.Checkpoint(ctx, filepath.Join(t.TempDir(), "image")))
	refusedBy(t, "check", r, b.Check(ctx))
	is, err := b.Look(box.What{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := box.Differ(was, is); diff != nil {
		t.Errorf("not as before the refusal:\n%s", strings.Join(diff, "\n"))
	}
	if err := b.Go(ctx); err != nil {
		t.Error(err)
	}
}

func refusedBy(t *testing.T, verb string, r refusal, err error) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%s: no error, want one about %s", verb, r.word)
	case !strings.Contains(strings.ToLower(err.Error()), r.word):
		t.Errorf("%s: %v, want %q in it", verb, err, r.word)
	}
}

// TestUnrefused runs the programs of TestRefused without a checkpoint.
func TestUnrefused(t *testing.T) {
	if os.Geteuid() != 0 {
		objectsNeed(t, "root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		objectsNeed(t, "runc")
	}
	progs := buildObjects(t)
	plain := objectsModes()[0]
	for _, r := range refusals() {
		t.Run(r.name, func(t *testing.T) {
			p := object{name: "refused", args: []string{r.name}, caps: r.caps}
			if r.c {
				p = object{name: r.name, c: true}
			}
			runObject(t, plain, box.Engine{Runtime: objectRuntime(t)}, progs, p, 0)
		})
	}
}
