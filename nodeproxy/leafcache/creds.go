// SPDX-License-Identifier: Apache-2.0

package leafcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// program is systemd's, of version 250 and later.
const program = "systemd-creds"

// credential is the name that is sealed along with the key.
const credential = "meshproxy.leaves"

// answerWithin bounds how long a TPM may hold up a start.
const answerWithin = 20 * time.Second

// Sealer says which systemd's program seals keys here, or why none does.
func Sealer(ctx context.Context) (string, error) {
	out, err := run(ctx, nil, "--version")
	if err != nil {
		return "", err
	}
	version, _, _ := strings.Cut(string(out), "\n")
	return program + " of " + version, nil
}

func encrypt(ctx context.Context, plain []byte, with Seal) ([]byte, error) {
	return run(ctx, plain, "encrypt", "--with-key="+string(with), "--name="+credential, "-", "-")
}

func decrypt(ctx context.Context, sealed []byte) ([]byte, error) {
	return run(ctx, sealed, "decrypt", "--name="+credential, "-", "-")
}

// run has systemd-creds work on a pipe: nothing plain gets to a file.
func run(ctx context.Context, in []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &said
	out, err := cmd.Output()
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%s is not installed; systemd has it since version 250", program)
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	clear(out)
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	return nil, fmt.Errorf("%s %s: %w: %s", program, args[0], err, lines[len(lines)-1])
}
