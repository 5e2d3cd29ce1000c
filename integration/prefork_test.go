//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/integration/progs/box"
)

// TestPrefork restores a server whose children share most of its memory, as root
// and as an ordinary user: it must take no more memory than before.
func TestPrefork(t *testing.T) {
	if os.Geteuid() != 0 {
		objectsNeed(t, "root")
	}
	progs := buildObjects(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: objectEngine(t)}
	t.Run("root", func(t *testing.T) { prefork(t, e, progs, 0) })
	t.Run("user", func(t *testing.T) { prefork(t, e, progs, 1000) })
	t.Run("huge", func(t *testing.T) { prefork(t, e, progs, 0, "huge") })
}

func prefork(t *testing.T, e box.Engine, progs box.Programs, uid uint32, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := box.Config{Args: append([]string{"/bin/cprogs", "prefork", "64", "8"}, args...), UID: uid}
	if uid == 0 {
		c.Caps = box.DefaultCaps()
	}
	b := startBox(ctx, t, t.TempDir(), fmt.Sprintf("prefork-%d-%d-%d", os.Getpid(), uid, len(args)), e, progs, c)
	was := preforkPSS(t, b)
	p := object{name: "prefork"}
	for range 2 { // the second image is of a container that was restored itself
		image := checkpointObject(ctx, t, b, p)
		if _, err := b.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		restoreObject(ctx, t, b, p, image)
		if is := preforkPSS(t, b); is > was+was/20 {
			t.Errorf("all processes take %d KiB, %d before", is, was)
		}
	}
	if err := b.Go(ctx); err != nil {
		t.Error(err)
	}
}

func preforkPSS(t *testing.T, b *box.Box) int64 {
	t.Helper()
	kib, err := b.PSS()
	if err != nil {
		t.Fatal(err)
	}
	if kib < 64<<10 {
		t.Fatalf("all processes take %d KiB, less than the parent's memory", kib)
	}
	return kib
}
