// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/peers/handover"
)

// Openers are this program again.
func init() { handover.Init() }

// lane makes connections through a foreign peer and a node, both ends of which
// are in the test's hands.
type lane struct {
	dial func() (net.Conn, error)
	app  *net.TCPListener
	// softResets: the foreign peer turns resets on their way to the client, or
	// to the application, into an end of the stream.
	softToClient, softToApp bool
	// strays: others connect to the application as well, such as health checks
	// that Envoy passes on.
	strays bool
	// endsWithApp: the foreign peer has ended both directions when the
	// application has ended its own.
	endsWithApp bool
}

// open makes a connection.
func (k *lane) open(t *testing.T) (client, app *net.TCPConn) {
	t.Helper()
	c, err := k.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := errors.Join(c.SetDeadline(time.Now().Add(patience)), k.app.SetDeadline(time.Now().Add(patience))); err != nil {
		t.Fatal(err)
	}
	var word []byte // by which the two ends know each other
	if k.strays {
		word = []byte(crand.Text())
		if _, err := c.Write(word); err != nil {
			t.Fatal(err)
		}
	}
	for {
		s, err := k.app.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(word))
		if _, err := io.ReadFull(s, got); err == nil && bytes.Equal(got, word) {
			return c.(*net.TCPConn), s.(*net.TCPConn)
		}
	}
}

// check runs what every pair of peers must be able to do.
func (k *lane) check(t *testing.T) {
	t.Run("echo", func(t *testing.T) {
		c, s := k.open(t)
		for range 3 {
			pass(t, c, s, "question")
			pass(t, s, c, "answer")
		}
	})
	t.Run("bulk both ways", func(t *testing.T) {
		c, s := k.open(t)
		now, arrived := make(chan struct{}), make(chan struct{})
		close(now)
		end := now
		if k.endsWithApp {
			end = arrived
		}
		var wg sync.WaitGroup
		wg.Go(func() { defer close(arrived); bulk(t, "to the application", c, s, 1, now) })
		wg.Go(func() { bulk(t, "to the client", s, c, 2, end) })
		wg.Wait()
	})
	t.Run("client ends first", func(t *testing.T) {
		c, s := k.open(t)
		halfClose(t, c, s)
	})
	t.Run("application ends first", func(t *testing.T) {
		c, s := k.open(t)
		if k.endsWithApp {
			lastWords(t, s, c)
			return
		}
		halfClose(t, s, c)
	})
	t.Run("client resets", func(t *testing.T) {
		c, s := k.open(t)
		pass(t, c, s, "before")
		reset(t, c, s, k.softToApp)
	})
	t.Run("application resets", func(t *testing.T) {
		c, s := k.open(t)
		pass(t, s, c, "before")
		reset(t, s, c, k.softToClient)
	})
	t.Run("many streams", func(t *testing.T) { k.many(t, 250) })
}

// many opens so many connections, all open at once, and uses each.
func (k *lane) many(t *testing.T, n int) {
	t.Helper()
	type ends struct{ client, app *net.TCPConn }
	all := make([]ends, n)
	for i := range all {
		all[i].client, all[i].app = k.open(t)
	}
	for i, e := range all {
		pass(t, e.client, e.app, fmt.Sprintf("question %d", i))
		pass(t, e.app, e.client, fmt.Sprintf("answer %d", i))
	}
}

// pass sends a text and expects it at the other end.
func pass(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		t.Fatalf("send %q: %v", text, err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("received %q, want %q: %v", got, text, err)
	}
}

// bulkSize is what passes in each direction.
const bulkSize = 64 << 20

// bulk sends random bytes to the end of the stream, which is sent when end is
// closed, and compares them. It is not for the test's goroutine alone.
func bulk(t *testing.T, way string, from, to *net.TCPConn, seed byte, end <-chan struct{}) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		sent, err := io.Copy(from, io.LimitReader(rand.NewChaCha8([32]byte{seed}), bulkSize))
		<-end
		if err := errors.Join(err, from.CloseWrite()); err != nil {
			t.Errorf("%s: send, after %d bytes: %v", way, sent, err)
		}
	})
	want := rand.NewChaCha8([32]byte{seed})
	got, expected := make([]byte, 256<<10), make([]byte, 256<<10)
	received := 0
	for {
		n, err := to.Read(got)
		_, _ = want.Read(expected[:n]) // never fails
		if !bytes.Equal(got[:n], expected[:n]) {
			t.Errorf("%s: other bytes than were sent, after %d", way, received)
			return
		}
		received += n
		if err == io.EOF {
			break
		}
		// All of it may take long on a busy machine; standing still may not.
		later := time.Now().Add(patience)
		err = errors.Join(err, from.SetWriteDeadline(later), to.SetReadDeadline(later))
		if err != nil {
			t.Errorf("%s: receive, after %d bytes: %v", way, received, err)
			return
		}
	}
	if received != bulkSize {
		t.Errorf("%s: %d bytes, want %d", way, received, bulkSize)
	}
}

// halfClose: one end has finished sending, and the other still answers.
func halfClose(t *testing.T, first, second *net.TCPConn) {
	t.Helper()
	lastWords(t, first, second)
	for i := range 3 {
		pass(t, second, first, fmt.Sprintf("answer %d", i))
	}
	if err := second.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, first)
}

// lastWords: one end has finished sending.
func lastWords(t *testing.T, from, to *net.TCPConn) {
	t.Helper()
	pass(t, from, to, "last words")
	if err := from.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, to)
}

func expectEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("received %d bytes, %v, want the end", n, err)
	}
}

// expectCut waits for the end, orderly or not, of what nobody but a node would
// end, and says how long after the reason it came.
func expectCut(t *testing.T, what string, since time.Time, ends ...net.Conn) {
	t.Helper()
	for _, end := range ends {
		if err := end.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := end.Read(make([]byte, 1)); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: read: %v, want the end or a reset", what, err)
		}
	}
	t.Logf("%s was closed after %v", what, time.Since(since).Round(time.Millisecond))
}

// reset resets one end and expects it at the other; soft accepts an orderly end
// as well.
func reset(t *testing.T, from, to *net.TCPConn, soft bool) {
	t.Helper()
	if err := errors.Join(from.SetLinger(0), from.Close()); err != nil {
		t.Fatal(err)
	}
	_, err := to.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) && (!soft || err != io.EOF) {
		t.Errorf("got %v, want a reset", err)
	}
}

// opener starts a process that opens sockets in a cgroup.
func (l *lab) opener(where handover.Place, cgroup string) *handover.Opener {
	l.Helper()
	o, err := handover.Start(where, "opener-"+cgroup, cgroup)
	if err != nil {
		l.Fatal(err)
	}
	return o
}

// listener is one of an application in a cgroup.
func (l *lab) listener(where handover.Place, cgroup, address string) *net.TCPListener {
	l.Helper()
	ln, err := l.opener(where, cgroup).Listen(address)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { ln.Close() })
	return ln
}
