// Command build makes the helper image's archive for `make build`. It leaves an archive alone that has the same in it, and
// says so and succeeds where none can be made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/switchyard-ci/switchyard/internal/buildinfo"
	"github.com/switchyard-ci/switchyard/internal/helperimage"
)

func main() {
	job := flag.String("job", "bin/switchyard-job", "the static switchyard-job for Linux")
	out := flag.String("out", "bin/"+helperimage.FileName, "where the archive goes")
	version := flag.String("version", "", "the version in the image's tag (0.0.0-dev)")
	flag.Parse()
	if *version == "" {
		*version = buildinfo.Development
	}
	info, made, err := helperimage.Build(context.Background(), helperimage.Options{Job: *job, Version: *version}, *out)
	switch {
	case errors.Is(err, helperimage.ErrCannot):
		_ = os.Remove(*out) // of another switchyard-job
		fmt.Fprintf(os.Stdout, "%s is left out: %v; deploy/helper/Dockerfile makes one anywhere\n", *out, err)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case made:
		fmt.Fprintf(os.Stdout, "%s: %s for %s/%s\n", *out, info.Reference, info.OS, info.Architecture)
	}
}
