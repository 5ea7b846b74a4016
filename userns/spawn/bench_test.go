package spawn

import (
	"context"
	"testing"
)

// BenchmarkStart is the time until the program runs, with and without the two
// setuid programs.
func BenchmarkStart(b *testing.B) {
	for _, mode := range []Mode{Single, Auto} {
		b.Run(string(mode), func(b *testing.B) {
			for b.Loop() {
				maps, err := PlanMaps(context.Background(), mode)
				if err != nil {
					b.Fatal(err)
				}
				p, err := Start(context.Background(), Config{Maps: maps, Path: "/bin/true"})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				p.Close()
				b.StartTimer()
			}
		})
	}
}
