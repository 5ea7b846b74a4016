// Package handoff is the language that the three processes of an instance
// speak: supervisor and engine, supervisor and agent.
//
// Each message is one datagram on a SOCK_SEQPACKET pair: a JSON envelope with
// the protocol version, the message's kind and its body. Descriptors travel
// beside the bytes (SCM_RIGHTS) and are none of this package's business: which
// message carries which descriptors is written at its type.
//
// All three processes run the same binary, so the version does not negotiate
// anything. It catches a binary that was replaced under a running instance:
// the newly started engine then refuses instead of misunderstanding.
//
// The engine reads bytes of the network and the agent lives inside the
// container, so the supervisor decodes what they send as untrusted input: one
// bounded datagram, unknown kinds and unknown fields refused.
package handoff

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Version is the version of the protocol. It changes with every change of a
// message that an older process would misread.
const Version = 1

// MaxMessage is the largest message in bytes. It lies well below the default
// socket buffer of 208 KiB (net.core.wmem_default), so a message never waits
// for the peer because of its size alone.
const MaxMessage = 64 << 10

// Errors that Decode wraps.
var (
	// ErrVersion says that the peer speaks another version.
	ErrVersion = errors.New("protocol version differs (was the binary replaced while running?)")
	// ErrMalformed says that the bytes are no message.
	ErrMalformed = errors.New("malformed message")
	// ErrTooLong says that a message exceeds MaxMessage.
	ErrTooLong = errors.New("message too long")
)

// Message is one of the message types of this package; all are pointers.
type Message interface {
	// kind names the message on the wire.
	kind() string
	// check refuses values that no correct peer sends.
	check() error
}

// envelope is a message on the wire.
type envelope struct {
	Version int             `json:"v"`
	Kind    string          `json:"kind"`
	Body    json.RawMessage `json:"body"`
}

// Encode returns m's bytes. It fails with ErrTooLong when m does not fit one
// message, and on values that Decode would refuse.
func Encode(m Message) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.kind(), err)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.kind(), err)
	}
	b, err := json.Marshal(envelope{Version: Version, Kind: m.kind(), Body: body})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.kind(), err)
	}
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("encode %s of %d bytes: %w", m.kind(), len(b), ErrTooLong)
	}
	return b, nil
}

// Decode returns the message that b holds. Its errors wrap ErrTooLong,
// ErrMalformed or ErrVersion.
func Decode(b []byte) (Message, error) {
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("decode message of %d bytes: %w", len(b), ErrTooLong)
	}
	var e envelope
	if err := strict(b, &e); err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	if e.Version != Version {
		return nil, fmt.Errorf("decode message of version %d, ours is %d: %w", e.Version, Version, ErrVersion)
	}
	m := blank(e.Kind)
	if m == nil {
		return nil, fmt.Errorf("decode message %.32q: %w: unknown kind", e.Kind, ErrMalformed)
	}
	if err := strict(e.Body, m); err != nil {
		return nil, fmt.Errorf("decode %s: %w", e.Kind, err)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("decode %s: %w", e.Kind, err)
	}
	return m, nil
}

// strict decodes exactly one JSON object without unknown fields. A null would
// decode into anything, so only an object is let in.
func strict(b []byte, into any) error {
	if trimmed := bytes.TrimLeft(b, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		return fmt.Errorf("%w: not an object", ErrMalformed)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if d.More() {
		return fmt.Errorf("%w: trailing bytes", ErrMalformed)
	}
	return nil
}
