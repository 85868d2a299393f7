// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"log/slog"
	"net/netip"
	"runtime/debug"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// contain, when deferred, makes a panic of a handshake its error: it ends that
// connection and not the node. Loops do the same for what runs on them.
func contain(log *slog.Logger, remote netip.AddrPort, err *error) {
	v := recover()
	if v == nil {
		return
	}
	e := &loop.PanicError{Value: v, Stack: debug.Stack()}
	log.Error("handshake panicked", "remote", remote, "panic", v, "stack", string(e.Stack))
	// Whatever the panic says: it may have the words of another reason.
	*err = reason.Wrap(reason.Internal, e)
}
