// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// converse makes one connection and goes through steps on it, so that a test
// can say when which end closes, and how.
func converse(ctx context.Context, args []string, out *reporter) error {
	var addr, steps string
	var timeout time.Duration
	fs := flag.NewFlagSet("converse", flag.ContinueOnError)
	fs.StringVar(&addr, "address", "", "host:port; a name is looked up")
	fs.StringVar(&steps, "steps", "", "comma-separated: send TEXT (a line), line (read one), shut (this direction), end (read to the end of the other one), reset")
	fs.DurationVar(&timeout, "timeout", 10*time.Second, "for all of it")
	if err := parse(fs, args); err != nil {
		return err
	}
	if addr == "" || steps == "" {
		return fmt.Errorf("%w: converse: -address and -steps are needed", errUsage)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := Conversed{Event: EventConversed, Target: addr}
	step, err := conversation(ctx, addr, strings.Split(steps, ","), &r)
	if err == nil {
		r.OK = true
		out.report(r)
		return nil
	}
	r.Step, r.Error = step, errorName(err)
	out.report(r)
	return errReported
}

// conversation returns the step that failed.
func conversation(ctx context.Context, addr string, steps []string, r *Conversed) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "connect", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	tcp, in := conn.(*net.TCPConn), bufio.NewReader(conn)
	for _, step := range steps {
		var err error
		switch verb, text, _ := strings.Cut(strings.TrimSpace(step), " "); verb {
		case "send":
			_, err = fmt.Fprintln(conn, text)
		case "line":
			var line string
			line, err = in.ReadString('\n')
			r.Lines = append(r.Lines, strings.TrimSuffix(line, "\n"))
		case "shut":
			err = tcp.CloseWrite()
		case "end":
			var rest []byte
			rest, err = io.ReadAll(in)
			r.Rest += string(rest)
		case "reset":
			if err = tcp.SetLinger(0); err == nil {
				err = conn.Close()
			}
		default:
			err = fmt.Errorf("%w: step %q is unknown", errUsage, step)
		}
		if err != nil {
			return step, err
		}
	}
	return "", nil
}
