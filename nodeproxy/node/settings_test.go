// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
)

// TestAnswers: who asks for an upgrade while the file is read again hears of the
// upgrade, and who asks once another process serves is told so.
func TestAnswers(t *testing.T) {
	reload, reading, read := make(chan struct{}), make(chan struct{}), make(chan struct{})
	n := &Node{log: slog.New(slog.DiscardHandler), options: Options{
		Reload: reload,
		Load: func() (*config.Config, error) {
			close(reading)
			<-read
			return nil, errors.New("the file is not valid")
		},
	}}
	n.views = newViews(nil)
	n.views.current.Store(&view{snapshot: mesh.Build(mesh.BuildInput{})})
	n.reloads = reloads{ask: make(chan question), over: make(chan struct{})}
	n.upgrades.relieved = make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	go n.reload(ctx)
	reload <- struct{}{}
	<-reading
	answer := make(chan error, 1)
	go func() {
		_, err := n.reloads.wait(t.Context(), true)
		answer <- err
	}()
	close(read)
	if err := <-answer; err == nil || err.Error() != "upgrade: capture is not in force yet" {
		t.Errorf("the answer is %v", err)
	}
	stop()
	if _, err := n.reloads.wait(t.Context(), false); !errors.Is(err, errRelieved) {
		t.Errorf("the last answer is %v", err)
	}
}

// TestAnswersBeforeTheEnd: a process that gives way answers, and then ends all that
// is being asked; the answer counts, whichever is seen first.
func TestAnswersBeforeTheEnd(t *testing.T) {
	r := reloads{ask: make(chan question), over: make(chan struct{})}
	for range 100 {
		ctx, end := context.WithCancel(t.Context())
		heard := make(chan error, 1)
		go func() {
			_, err := r.wait(ctx, true)
			heard <- err
		}()
		q := <-r.ask
		q.answer <- reloaded{}
		end()
		if err := <-heard; err != nil {
			t.Fatal(err)
		}
	}
}
