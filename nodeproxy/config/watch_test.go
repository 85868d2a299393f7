// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// watched runs Watch and returns what it reports.
func watched(t *testing.T, path string, ask chan struct{}) <-chan Reload {
	t.Helper()
	o := Origins{Path: path}
	c, err := o.Load()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	reloads, done := make(chan Reload), make(chan error)
	go func() {
		done <- Watch(ctx, o, c, ask, func(r Reload) {
			select {
			case reloads <- r:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return reloads
}

func next(t *testing.T, reloads <-chan Reload) Reload {
	t.Helper()
	select {
	case r := <-reloads:
		return r
	case <-time.After(time.Minute):
		t.Fatal("no reload")
		return Reload{}
	}
}

func replace(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestWatch(t *testing.T) {
	path := write(t, "log: {level: info}\n")
	ask := make(chan struct{})
	reloads := watched(t, path, ask)

	ask <- struct{}{}
	if r := next(t, reloads); r.Err != nil || !r.Asked || r.Config.Log.Level != "info" {
		t.Errorf("asked: %+v", r)
	}
	replace(t, path, "log: {level: debug}\n")
	if r := next(t, reloads); r.Err != nil || r.Asked || r.Config.Log.Level != "debug" {
		t.Errorf("replaced: %+v", r)
	}
	replace(t, path, "log: {level: loud}\n")
	if r := next(t, reloads); !errors.Is(r.Err, ErrInvalid) || r.Config != nil {
		t.Errorf("invalid: %+v", r)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if r := next(t, reloads); !errors.Is(r.Err, ErrInvalid) {
		t.Errorf("removed: %+v", r)
	}
	replace(t, path, "log: {level: warn}\n")
	if r := next(t, reloads); r.Err != nil || r.Config.Log.Level != "warn" {
		t.Errorf("back: %+v", r)
	}
	// The same contents again are no news; the next change is.
	replace(t, path, "log: {level: warn}\n")
	replace(t, path, "log: {level: error}\n")
	if r := next(t, reloads); r.Err != nil || r.Config.Log.Level != "error" {
		t.Errorf("last: %+v", r)
	}
}

// TestWatchNoticesWhatChangedBefore: between Load and Watch.
func TestWatchNoticesWhatChangedBefore(t *testing.T) {
	path := write(t, "log: {level: info}\n")
	o := Origins{Path: path}
	c, err := o.Load()
	if err != nil {
		t.Fatal(err)
	}
	replace(t, path, "log: {level: debug}\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err = Watch(ctx, o, c, nil, func(r Reload) {
		if r.Err != nil || r.Config.Log.Level != "debug" {
			t.Errorf("reload: %+v", r)
		}
		cancel()
	})
	if err != nil {
		t.Error(err)
	}
}

func TestWatchWithoutFile(t *testing.T) {
	ask := make(chan struct{})
	reloads := watched(t, "", ask)
	ask <- struct{}{}
	if r := next(t, reloads); r.Err != nil || r.Config == nil {
		t.Errorf("asked: %+v", r)
	}
}
