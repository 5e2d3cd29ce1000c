// Package undo keeps the steps that put the world back when something fails
// half-way.
package undo

import (
	"context"
	"errors"
	"slices"
)

// Stack holds steps to run in reverse. Its zero value is empty and ready. It is
// not safe for concurrent use.
type Stack struct{ steps []func(context.Context) error }

// Add pushes a step.
func (s *Stack) Add(f func(context.Context) error) { s.steps = append(s.steps, f) }

// Keep drops every step: the work succeeded.
func (s *Stack) Keep() { s.steps = nil }

// Run runs the steps, last first, all of them, even when ctx is already
// cancelled, and joins what failed to *err.
func (s *Stack) Run(ctx context.Context, err *error) {
	ctx = context.WithoutCancel(ctx)
	for _, step := range slices.Backward(s.steps) {
		if e := step(ctx); e != nil {
			*err = errors.Join(*err, e)
		}
	}
	s.steps = nil
}
