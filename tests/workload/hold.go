// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// holder is the role "hold".
type holder struct {
	addr    string
	send    string
	read    bool
	timeout time.Duration
	out     *reporter
}

// hold opens connections, leaves them alone, and says what becomes of each.
func hold(ctx context.Context, args []string, out *reporter) error {
	h := &holder{out: out}
	var connections int
	fs := flag.NewFlagSet("hold", flag.ContinueOnError)
	fs.StringVar(&h.addr, "address", "", "host:port; a name is looked up")
	fs.StringVar(&h.send, "send", "", "line to send on each; then a line is awaited")
	fs.BoolVar(&h.read, "read", true, "read what comes; if not, the peer finds out that nobody does")
	fs.DurationVar(&h.timeout, "timeout", 5*time.Second, "for connecting")
	fs.IntVar(&connections, "connections", 1, "how many")
	if err := parse(fs, args); err != nil {
		return err
	}
	if h.addr == "" || connections < 1 {
		return fmt.Errorf("%w: hold: -address and a connection are needed", errUsage)
	}
	out.report(Ready{Event: EventReady})
	var wg sync.WaitGroup
	for i := range connections {
		wg.Go(func() { h.one(ctx, i) })
	}
	wg.Wait()
	<-ctx.Done() // those that ended early don't end the process
	return nil
}

func (h *holder) one(ctx context.Context, number int) {
	r := Held{Event: EventHeld, Number: number}
	tell := func(state string, err error) {
		r.State, r.Error = state, errorName(err)
		h.out.report(r)
	}
	d := net.Dialer{Timeout: h.timeout}
	conn, err := d.DialContext(ctx, "tcp", h.addr)
	if err != nil {
		tell(HeldRefused, err)
		return
	}
	defer conn.Close()
	tell(HeldConnected, nil)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	in := bufio.NewReader(conn)
	if h.send != "" {
		if err = h.ask(conn, in, &r); err == nil {
			tell(HeldAnswered, nil)
		}
	}
	if err == nil && !h.read {
		<-ctx.Done()
		return
	}
	if err == nil {
		if _, err = io.Copy(io.Discard, onlyReader{in}); err == nil {
			err = io.EOF
		}
	}
	if ctx.Err() == nil {
		tell(HeldEnded, err)
	}
}

func (h *holder) ask(conn net.Conn, in *bufio.Reader, r *Held) error {
	if _, err := fmt.Fprintln(conn, h.send); err != nil {
		return err
	}
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var seen Seen
	if err := json.Unmarshal(line, &seen); err != nil {
		return fmt.Errorf("parse answer: %w", err)
	}
	r.Server = seen.Server
	return nil
}
