// Command testreport reads `go test -json` and prints what a person wants of it: the line of each package, everything
// that failed and skipped tests said, and at the end a line such as
//
//	1234 passed, 0 failed, 2 skipped
//
// With -summary FILE that line goes into the file as well. It exits 1 if a test failed or nothing ran; a failure of the
// go command itself is the shell's to notice (pipefail).
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	summary := flag.String("summary", "", "`file` that gets the closing line as well")
	flag.Parse()
	if err := convert(os.Stdin, os.Stdout, *summary); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
}

func convert(in io.Reader, out io.Writer, summary string) error {
	total, err := report(in, out)
	if _, werr := fmt.Fprintln(out, total); werr != nil {
		err = errors.Join(err, fmt.Errorf("write the closing line: %w", werr))
	}
	if summary != "" {
		if werr := os.WriteFile(summary, []byte(total.String()+"\n"), 0o644); werr != nil {
			err = errors.Join(err, fmt.Errorf("write the summary: %w", werr))
		}
	}
	if err == nil && total.failed > 0 {
		err = errors.New("tests failed")
	}
	return err
}
