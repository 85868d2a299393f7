// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
)

// newHandler returns the routes of the admin socket.
func newHandler(o *Options) http.Handler {
	n := o.Node
	short := http.NewServeMux()
	short.HandleFunc("GET /v1/status", get(o.Log, n.Status))
	short.HandleFunc("GET /v1/services", get(o.Log, n.Services))
	short.HandleFunc("GET /v1/workloads", get(o.Log, n.Workloads))
	short.HandleFunc("GET /v1/connections", listConnections(o.Metrics))
	short.HandleFunc("POST /v1/policy/test", post(o.Log, n.ExplainPolicy))
	short.HandleFunc("GET /v1/config", get(o.Log, n.Config))
	short.HandleFunc("GET /v1/ca", get(o.Log, n.CA))
	short.HandleFunc("PUT /v1/bypass", post(o.Log, func(ctx context.Context, b api.Bypass) (api.Bypass, error) {
		if b.Workload == "" {
			return b, &api.Error{Kind: api.KindInvalid, Message: "no workload named"}
		}
		return b, n.SetBypass(ctx, b)
	}))
	short.HandleFunc("PUT /v1/splice", post(o.Log, n.SetSplice))
	short.HandleFunc("POST /v1/drain", get(o.Log, n.Drain))
	short.HandleFunc("GET /v1/log/level", get(o.Log, func(context.Context) (api.LogLevel, error) {
		return levelOf(o.Level), nil
	}))
	short.HandleFunc("PUT /v1/log/level", post(o.Log, func(_ context.Context, l api.LogLevel) (api.LogLevel, error) {
		return setLevel(o, l)
	}))
	short.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusNotFound, &api.Error{Kind: api.KindNotFound, Message: "no " + r.Method + " " + r.URL.Path})
	})

	mux := http.NewServeMux()
	mux.Handle("/", withDeadline(short))
	// A new process takes as long as it needs, within the node's own limit.
	mux.Handle("POST /v1/reload", long(get(o.Log, n.Reload)))
	mux.Handle("POST /v1/upgrade", long(get(o.Log, n.Upgrade)))
	mux.Handle("GET /v1/connections/watch", long(watchConnections(o.Metrics)))
	mux.Handle("/debug/pprof/", long(pprof.Index))
	mux.Handle("/debug/pprof/cmdline", long(pprof.Cmdline))
	mux.Handle("/debug/pprof/profile", long(pprof.Profile))
	mux.Handle("/debug/pprof/symbol", long(pprof.Symbol))
	mux.Handle("/debug/pprof/trace", long(pprof.Trace))
	return mux
}

// withDeadline bounds an answer's time.
func withDeadline(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			writeError(w, slog.Default(), err)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), writeTimeout)
		defer cancel()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

// long is for answers that take as long as the client wants. The deadline for
// reading the request must go: net/http keeps reading while an answer is under
// way, and takes a timeout there for a client that has gone.
func long(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
			writeError(w, slog.Default(), err)
			return
		}
		h(w, r)
	})
}

// get answers with what ask returns; the request says nothing.
func get[T any](log *slog.Logger, ask func(context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer, err := ask(r.Context())
		if err != nil {
			writeError(w, log, err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

// post reads a Q and answers with what ask makes of it.
func post[Q, T any](log *slog.Logger, ask func(context.Context, Q) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if err := readJSON(http.MaxBytesReader(w, r.Body, maxBodyBytes), &q); err != nil {
			writeError(w, log, &api.Error{Kind: api.KindInvalid, Message: err.Error()})
			return
		}
		answer, err := ask(r.Context(), q)
		if err != nil {
			writeError(w, log, err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

func readJSON(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("read request: more than one value")
	}
	return nil
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	// An error here means that the client has gone.
	_ = json.NewEncoder(w).Encode(v)
}

func writeError(w http.ResponseWriter, log *slog.Logger, err error) {
	known := (*api.Error)(nil)
	if !errors.As(err, &known) {
		log.Error("answer admin request", "error", err)
		known = &api.Error{Kind: api.KindInternal, Message: err.Error()}
	}
	writeJSON(w, statusCode(known.Kind), known)
}

func statusCode(k api.Kind) int {
	switch k {
	case api.KindInvalid:
		return http.StatusBadRequest
	case api.KindForbidden:
		return http.StatusForbidden
	case api.KindNotFound:
		return http.StatusNotFound
	case api.KindConflict:
		return http.StatusConflict
	case api.KindUnsupported:
		return http.StatusNotImplemented
	default:
		return http.StatusInternalServerError
	}
}

func levelOf(level *slog.LevelVar) api.LogLevel {
	return api.LogLevel{Level: strings.ToLower(level.Level().String())}
}

func setLevel(o *Options, l api.LogLevel) (api.LogLevel, error) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	level, ok := levels[l.Level]
	if !ok {
		return l, &api.Error{
			Kind:    api.KindInvalid,
			Message: fmt.Sprintf("log level %q: want debug, info, warn or error", l.Level),
		}
	}
	o.Level.Set(level)
	o.Log.Info("set log level", "level", l.Level)
	return levelOf(o.Level), nil
}

// metricsHandler serves what anybody who reaches the port may read.
func metricsHandler(m *telemetry.Metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	return mux
}

// healthHandler answers probes.
func healthHandler(h Health) http.Handler {
	answer := func(ask func() error, notes func() []string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Cache-Control", "no-store")
			if err := ask(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprintln(w, err)
				return
			}
			fmt.Fprintln(w, strings.Join(append([]string{"ok"}, notes()...), "\n"))
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", answer(h.Ready, h.Unserved))
	mux.HandleFunc("GET /healthz/live", answer(h.Live, func() []string { return nil }))
	return mux
}
