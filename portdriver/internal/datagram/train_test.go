package datagram

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestTrainsKeepEveryFlowsOrderAndSizes(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		flows := make([]*Flow, 1+r.IntN(12))
		for i := range flows {
			flows[i] = new(Flow)
		}
		sent, got := make(map[*Flow][][]byte), make(map[*Flow][][]byte)
		b := new(batch)
		empty := func() {
			for i := range b.trains[:b.n] {
				tr := &b.trains[i]
				cut := cut(tr.payload, tr.segment())
				if len(tr.payload) > maxTrain || len(cut) > maxCars || len(cut) != tr.cars {
					t.Fatalf("a train of %d bytes, %d datagrams, counted as %d", len(tr.payload), len(cut), tr.cars)
				}
				got[tr.flow] = append(got[tr.flow], cut...)
			}
			b.reset()
		}
		for range 300 {
			f, payload, segment := flows[r.IntN(len(flows))], arrivalOf(r), 0
			if len(payload) > 1 && r.IntN(5) == 0 {
				segment = max(1+r.IntN(len(payload)-1), (len(payload)+maxCars-1)/maxCars)
			}
			sent[f] = append(sent[f], cut(payload, segment)...)
			if !b.add(f, payload, segment) {
				empty()
				if !b.add(f, payload, segment) {
					t.Fatal("an empty batch has no room")
				}
			}
		}
		empty()
		for f := range sent {
			if len(sent[f]) != len(got[f]) {
				t.Fatalf("%d datagrams became %d", len(sent[f]), len(got[f]))
			}
			for i := range sent[f] {
				if !bytes.Equal(sent[f][i], got[f][i]) {
					t.Fatalf("datagram %d: %d bytes became %d, or others", i, len(sent[f][i]), len(got[f][i]))
				}
			}
		}
	}
}

// arrivalOf returns bytes as one receive may bring them; sizes often repeat.
func arrivalOf(r *rand.Rand) []byte {
	sizes := []int{0, 1, 100, 100, 100, 1400, 1400, 1400, 1399, maxCar, maxCar + 1, maxTrain}
	return bytes.Repeat([]byte{byte(r.Uint32()), byte(r.Uint32())}, maxTrain)[:sizes[r.IntN(len(sizes))]]
}

// cut returns the datagrams of a train.
func cut(payload []byte, segment int) (list [][]byte) {
	if segment == 0 {
		return [][]byte{bytes.Clone(payload)}
	}
	for len(payload) > 0 {
		n := min(segment, len(payload))
		list = append(list, bytes.Clone(payload[:n]))
		payload = payload[n:]
	}
	return list
}

func TestEqualDatagramsBecomeOneTrain(t *testing.T) {
	b, one, two := new(batch), new(Flow), new(Flow)
	for range maxCars {
		b.add(one, make([]byte, 1000), 0)
		b.add(two, make([]byte, 100), 0)
	}
	b.add(two, make([]byte, 100), 0)
	if b.n != 3 || b.trains[0].cars != maxCars || b.trains[1].cars != maxCars || b.trains[2].cars != 1 {
		t.Errorf("%d trains: %d, %d, %d", b.n, b.trains[0].cars, b.trains[1].cars, b.trains[2].cars)
	}
}
