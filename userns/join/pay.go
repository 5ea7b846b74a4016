package join

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/postern-net/postern/userns/internal/rawfork"
)

// ErrOwnNetwork is wrapped when the target's network namespace is the one that we
// are in: there is nobody to serve, and whatever is made there would change the
// host's own network.
var ErrOwnNetwork = errors.New("it is in our own network namespace: name one that has a network of its own")

// pay pays the visit and puts the descriptors that it brings where they belong.
func (t *Target) pay(v *visit) error {
	files, err := t.perform(v.script)
	if err != nil {
		return err
	}
	if len(files) != len(v.into) {
		rawfork.CloseAll(files)
		return fmt.Errorf("enter %s: %d descriptors came back, want %d", t.name, len(files), len(v.into))
	}
	for i, f := range files {
		*v.into[i] = f
	}
	return nil
}

// perform forks a script that begins with enter, waits for its end and returns the
// descriptors that it sent.
func (t *Target) perform(s *rawfork.Script) ([]*os.File, error) {
	same, err := sameFile(t.netns, "/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", t.name, err)
	}
	if same {
		return nil, fmt.Errorf("enter %s: %w", t.name, ErrOwnNetwork)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	child, err := s.Fork(0)
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", t.name, err)
	}
	files, err := child.Result(ctx)
	if err != nil {
		rawfork.CloseAll(files)
		return nil, t.explain(rawfork.Both(err, child.Kill()))
	}
	if err := child.Finish(); err != nil {
		rawfork.CloseAll(files)
		return nil, fmt.Errorf("enter %s: %w", t.name, err)
	}
	return files, nil
}
