package lazy

import (
	"errors"
)

func (s *server) journalFull() bool {
	s.st.mu.Lock()
	defer s.st.mu.Unlock()
	return s.st.j != nil && s.st.j.full()
}

// compact writes the plan anew when the journal fills up.
func (s *server) compact() error {
	if !s.journalFull() {
		return nil
	}
	for _, sp := range s.spaces { // nobody copies or reads now
		sp.mu.Lock()
		defer sp.mu.Unlock()
	}
	s.st.mu.Lock()
	defer s.st.mu.Unlock()
	for i, b := range s.st.tables {
		if b != nil && !b.isCalm() && !s.spaces[i].calm.Load() {
			return nil // a plan has no place for what is outstanding: later
		}
	}
	next := *s.plan
	next.Spaces = nil
	for i, b := range s.st.tables {
		p := PlanSpace{PID: s.spaces[i].pid, Gone: b == nil}
		if b != nil {
			p.Pieces, p.Watched = b.table.Pieces(), b.mapped.Pieces()
		}
		next.Spaces = append(next.Spaces, p)
	}
	return s.replace(&next)
}

// replace goes over to a new plan and an empty journal, the guard first.
func (s *server) replace(next *Plan) error {
	plan, err := next.file()
	if err != nil {
		return err
	}
	file, err := newJournal(journalEntries)
	if err != nil {
		return err
	}
	j, err := openJournal(file)
	if err != nil {
		return err
	}
	if err := s.tell(msgPlan, 0, plan, file); err != nil {
		return err
	}
	err = errors.Join(s.st.j.close(), s.held.replace(plan, file))
	s.plan, s.st.j = next, j
	return err
}
