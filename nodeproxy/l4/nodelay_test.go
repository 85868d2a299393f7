// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// TestAcceptedWithoutDelay: small messages leave at once on connections that a
// listener took, which have it from their listener.
func TestAcceptedWithoutDelay(t *testing.T) {
	n := newNode(t, nodeOptions{ca: tunneltest.NewCA(t)})
	fds := make(chan int, 1)
	at := n.listenFor(routerFunc(func(c *l4.Client) (l4.Route, error) {
		fds <- c.Take()
		return l4.Route{}, l4.ErrTaken
	}))
	dial(t, at)
	select {
	case fd := <-fds:
		defer unix.Close(fd)
		if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); err != nil || v != 1 {
			t.Errorf("TCP_NODELAY is %d, %v", v, err)
		}
	case <-time.After(patience):
		t.Fatal("no connection was routed")
	}
}
