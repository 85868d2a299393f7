// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// The formats of logs.
const (
	FormatText = "text"
	FormatJSON = "json"
)

// ErrFormat: neither text nor json.
var ErrFormat = errors.New("unknown log format")

// NewLogHandler returns the handler that writes a log to w. level may be a
// *slog.LevelVar, for a level that changes at run time.
func NewLogHandler(w io.Writer, format string, level slog.Leveler) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case FormatText:
		return slog.NewTextHandler(w, options), nil
	case FormatJSON:
		return slog.NewJSONHandler(w, options), nil
	default:
		return nil, fmt.Errorf("%w %q", ErrFormat, format)
	}
}
