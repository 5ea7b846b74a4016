package apisock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	wire "github.com/postern-net/postern/proto/api"
)

const (
	// maxAnswer bounds what a client reads, bytes: the list of all rules that there
	// can be takes a tenth.
	maxAnswer = 64 << 20
	// clientTimeout bounds one request. The server ends a slow one earlier and says why.
	clientTimeout = changeTimeout + 2*answerTimeout
)

// Client asks our part of the API of one instance. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the control socket at a path. It connects when it
// is first used.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{
		Timeout:   clientTimeout,
		Transport: &http.Transport{DialContext: dial, MaxConnsPerHost: 1, IdleConnTimeout: time.Second},
	}}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Ports returns all rules in force.
func (c *Client) Ports(ctx context.Context) ([]wire.Port, error) {
	var ports []wire.Port
	err := c.do(ctx, "GET", "", nil, &ports)
	return ports, err
}

// AddPorts puts specs in force, all or none, and returns their rules.
func (c *Client) AddPorts(ctx context.Context, specs []string) ([]wire.Port, error) {
	var ports []wire.Port
	err := c.do(ctx, "POST", "", wire.AddPorts{Specs: specs}, &ports)
	return ports, err
}

// RemovePort ends a rule.
func (c *Client) RemovePort(ctx context.Context, id int) error {
	return c.do(ctx, "DELETE", "/"+strconv.Itoa(id), nil, nil)
}

// do sends one request below /v1/postern/ports and reads the answer. A refusal is
// an error with the instance's own words.
func (c *Client) do(ctx context.Context, method, path string, body, answer any) error {
	var reader io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		reader = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://postern/v1/postern/ports"+path, reader)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.unreachable(err)
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		return c.refused(response)
	}
	if answer == nil {
		return nil
	}
	if err := wire.Decode(response.Body, maxAnswer, answer); err != nil {
		return fmt.Errorf("answer of %s: %w", c.socket, err)
	}
	return nil
}

// unreachable explains an error of the connection. The operation and address that
// net/http and net add say nothing about a unix socket.
func (c *Client) unreachable(err error) error {
	var inURL *url.Error
	if errors.As(err, &inURL) {
		err = inURL.Err
	}
	var inNet *net.OpError
	if errors.As(err, &inNet) {
		err = inNet.Err
	}
	return fmt.Errorf("ask %s: %w (see postern ps for running instances)", c.socket, err)
}

func (c *Client) refused(response *http.Response) error {
	var e wire.Error
	if err := wire.Decode(response.Body, wire.MaxRootlessKit, &e); err != nil || e.Message == "" {
		return fmt.Errorf("ask %s: HTTP status %s", c.socket, response.Status)
	}
	return errors.New(e.Message)
}
