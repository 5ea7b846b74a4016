package supervisor

import (
	"fmt"
	"os"

	"github.com/postern-net/postern/userns/join"
)

// detached connects the network namespace that the agent has made beside its own
// and sent. Only the first one counts: it comes before the command runs, when
// nobody but the agent lives in the user namespace. It has to belong to that user
// namespace, or joining it fails.
func (s *session) detached(files []*os.File) error {
	if s.net.target != nil || !s.kind.hasEngine() {
		return nil
	}
	if len(files) != 1 {
		return fmt.Errorf("take the network namespace over: %d descriptors came, want 1", len(files))
	}
	target, err := join.OpenPaths(
		fmt.Sprintf("/proc/self/fd/%d", files[0].Fd()),
		fmt.Sprintf("/proc/%d/ns/user", s.agent.process.PID))
	if err != nil {
		return fmt.Errorf("take the network namespace over: %w", err)
	}
	return s.connect(target)
}

// connect connects the network namespace of a target.
func (s *session) connect(target *join.Target) error {
	return s.connectBy(target, s.maker(target))
}

// connectBy connects the network and passes on what the user should know.
func (s *session) connectBy(target *join.Target, make maker) error {
	s.net.express.keep = s.agent != nil
	notice, err := s.net.connect(target, make)
	if err != nil {
		return err
	}
	if s.publisher != nil {
		s.publisher.connect(target, s.containerRoot)
	}
	if notice != "" {
		notify(s.cfg.Stderr, notice)
	}
	return nil
}
