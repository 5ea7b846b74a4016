package reap

import (
	"os/exec"
	"testing"
	"time"
)

// TestKillAll kills a tree of several generations with sessions of their own, and
// zombies, until no child is left.
func TestKillAll(t *testing.T) {
	if err := Subreaper(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		cmd := exec.Command("sh", "-c", "(sh -c '(setsid sleep 1000 &) ; sleep 1000' &) ; (setsid sh -c 'sleep 1000 & sleep 1000' &); true")
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		// Not waited for: KillAll reaps it. Its own Wait would be robbed of it.
		if err := exec.Command("sh", "-c", "exit 3").Start(); err != nil {
			t.Fatal(err)
		}
		pids, err := Children()
		if err != nil || len(pids) == 0 {
			t.Fatalf("Children = %v, %v; the orphans were not adopted", pids, err)
		}
		if err := KillAll(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if pids, err := Children(); err != nil || len(pids) != 0 {
			t.Fatalf("left: %v, %v", pids, err)
		}
	}
}
