package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ErrMalformed is wrapped when a body is not the one JSON value that is wanted.
var ErrMalformed = errors.New("malformed body")

// ErrTooLong is wrapped when a body is longer than allowed.
var ErrTooLong = errors.New("too long")

// Decode reads one JSON value of at most limit bytes from r into v; nothing but
// white space may follow. Unknown fields are ignored, as RootlessKit does: newer
// clients may send more. An error of r itself is wrapped.
func Decode(r io.Reader, limit int64, v any) error {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	if int64(len(body)) > limit {
		return fmt.Errorf("read body: %w: more than %d bytes", ErrTooLong, limit)
	}
	// Unlike a Decoder, Unmarshal refuses what follows the value.
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	// null is no object, although Unmarshal lets it pass for one.
	if bytes.Equal(bytes.TrimSpace(body), []byte("null")) {
		return fmt.Errorf("%w: null", ErrMalformed)
	}
	return nil
}
