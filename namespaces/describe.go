package namespaces

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// Describe records the namespaces of the container whose init is initPID, with
// its mounts. own are those of them to save, each with [SaveTmpfs]; the record has
// their names in the same order. Describe only looks. Call it once nothing in the
// container runs, so that the parts belong together.
func Describe(ctx context.Context, initPID int) (ns *blob.Namespaces, own []*blob.Mount, err error) {
	ns = &blob.Namespaces{}
	for _, describe := range []func(context.Context, int, *blob.Namespaces) error{
		describeUTS, describeNet, describeUser, describeTime, describeMounts,
	} {
		if err := describe(ctx, initPID, ns); err != nil {
			return nil, nil, fmt.Errorf("describe namespaces: %w", err)
		}
	}
	if own, err = ownTmpfs(ns.Mounts); err != nil {
		return nil, nil, fmt.Errorf("describe namespaces: %w", err)
	}
	for _, m := range own {
		ns.Tmpfs = append(ns.Tmpfs, &blob.Tmpfs{Mountpoint: m.Mountpoint})
	}
	return ns, own, nil
}

// Check names, each as an error that wraps [errs.ErrUnsupported], what keeps the
// namespaces of a container from being saved. tasks are all of its threads,
// initPID may be among them; spec is the config of its bundle. Check only looks
// and may run while the container does: a task that ends meanwhile is left out.
func Check(ctx context.Context, initPID int, tasks []int, spec *specs.Spec) []error {
	var refused []error
	if err := checkPID(initPID); err != nil {
		refused = append(refused, err)
	}
	for _, tid := range tasks {
		refused = append(refused, checkTask(initPID, tid)...)
	}
	refused = append(refused, checkIPC(ctx, initPID)...)
	now, err := Mounts(initPID)
	if err != nil {
		return append(refused, err)
	}
	refused = append(refused, ExtraMounts(initPID, now, spec)...)
	return append(refused, checkTmpfs(now)...)
}

// checkTask says what is wrong with one task, by the pid that the container
// knows it by. A task that ends meanwhile reads as missing, its files as ESRCH.
func checkTask(initPID, tid int) (refused []error) {
	pid, err := innermostPID(tid)
	if err != nil {
		return unlessGone(err)
	}
	for _, kind := range Differ(initPID, tid) {
		refused = append(refused, &errs.Error{
			PID: pid, Obj: errs.Name(kind + " namespace"),
			Err: fmt.Errorf("is not its init's: %w", errs.ErrUnsupported),
		})
	}
	for _, err := range unlessGone(checkCgroup(initPID, tid)) {
		refused = append(refused, &errs.Error{PID: pid, Err: err})
	}
	return refused
}

func unlessGone(err error) []error {
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return []error{err}
}

// CheckRestore names, each as an error, what the container whose init is
// initPID lacks to become the one that was described.
func CheckRestore(ctx context.Context, initPID int, was *blob.Namespaces) []error {
	var refused []error
	for _, check := range []func(context.Context, int, *blob.Namespaces) error{checkUser, checkTime} {
		if err := check(ctx, initPID, was); err != nil {
			refused = append(refused, err)
		}
	}
	now, err := Mounts(initPID)
	if err != nil {
		return append(refused, err)
	}
	return append(refused, Missing(was.GetMounts(), now)...)
}

// Restore gives the namespaces of a fresh container the names and the loopback
// that were described. Contents of tmpfs mounts are put back one by one, with
// [RestoreTmpfs].
func Restore(ctx context.Context, initPID int, was *blob.Namespaces) error {
	for _, restore := range []func(context.Context, int, *blob.Namespaces) error{restoreUTS, restoreNet} {
		if err := restore(ctx, initPID, was); err != nil {
			return fmt.Errorf("restore namespaces: %w", err)
		}
	}
	return nil
}
