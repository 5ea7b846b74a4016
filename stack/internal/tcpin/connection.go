package tcpin

import (
	"sync"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/stream"
)

// connection is a Stream that counts its bytes with its flow and takes the flow
// out of the table when it is closed.
type connection struct {
	*stream.Stream
	in   *In
	flow *flow.Flow
	once sync.Once
}

// Consume implements relay.Stream.
func (c *connection) Consume(n int) {
	c.Stream.Consume(n)
	c.flow.BytesIn.Add(uint64(n))
}

// Fill implements relay.Stream.
func (c *connection) Fill(n int, read func([]byte) error) (int, error) {
	took, err := c.Stream.Fill(n, read)
	c.flow.BytesOut.Add(uint64(took))
	return took, err
}

// Close implements relay.Stream.
func (c *connection) Close() {
	c.once.Do(func() {
		c.in.mu.Lock()
		delete(c.in.open, c)
		c.in.mu.Unlock()
		c.Stream.Close()
		c.in.cfg.Flows.Release(c.flow)
	})
}
