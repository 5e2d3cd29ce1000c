package undo

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestRunGoesBackwardsAndOn(t *testing.T) {
	var s Stack
	var order []int
	bad := []error{nil, errors.New("one"), errors.New("two")}
	for i, e := range bad {
		s.Add(func(context.Context) error {
			order = append(order, i)
			return e
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cause := errors.New("cause")
	err := cause
	s.Run(ctx, &err)
	if !slices.Equal(order, []int{2, 1, 0}) {
		t.Errorf("ran %v", order)
	}
	for _, want := range []error{cause, bad[1], bad[2]} {
		if !errors.Is(err, want) {
			t.Errorf("%v lacks %v", err, want)
		}
	}
	s.Run(ctx, &err)
	if len(order) != 3 {
		t.Error("a second run ran the steps again")
	}
}

func TestRunIsNotCancelled(t *testing.T) {
	var s Stack
	ctx, cancel := context.WithCancel(t.Context())
	s.Add(func(ctx context.Context) error { return ctx.Err() })
	cancel()
	var err error
	s.Run(ctx, &err)
	if err != nil {
		t.Errorf("the step saw %v", err)
	}
}

func TestKeepForgets(t *testing.T) {
	var s Stack
	s.Add(func(context.Context) error { return errors.New("ran") })
	s.Keep()
	var err error
	s.Run(t.Context(), &err)
	if err != nil {
		t.Error(err)
	}
}
