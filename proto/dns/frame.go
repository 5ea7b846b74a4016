package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ReadMessage reads one message with its two-byte length from a stream (RFC
// 7766 section 8). A length above limit (bytes, at most MaxMessage) is an error
// before anything is allocated for it. The error is io.EOF if the stream ends
// between messages, io.ErrUnexpectedEOF if it ends within one.
func ReadMessage(r io.Reader, limit int) ([]byte, error) {
	var prefix [2]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(prefix[:]))
	if n < HeaderLen || n > limit {
		return nil, fmt.Errorf("read DNS message: length %d is not within %d to %d", n, HeaderLen, limit)
	}
	msg := make([]byte, n)
	if _, err := io.ReadFull(r, msg); err != nil {
		if errors.Is(err, io.EOF) { // the length has been read, so this is in the middle
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return msg, nil
}

// WriteMessage writes one message with its length in a single Write, so that
// it leaves in one segment (RFC 7766 section 8).
func WriteMessage(w io.Writer, msg []byte) error {
	if len(msg) > MaxMessage {
		return fmt.Errorf("write DNS message: %d bytes are more than %d", len(msg), MaxMessage)
	}
	frame := make([]byte, 2, 2+len(msg))
	binary.BigEndian.PutUint16(frame, uint16(len(msg)))
	_, err := w.Write(append(frame, msg...))
	return err
}
