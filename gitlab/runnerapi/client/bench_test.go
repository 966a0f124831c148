package client

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// cpu returns the CPU time that the process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// cannedServer answers each request with the same bytes and does as little as possible besides.
func cannedServer(b *testing.B, answer string) string {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, listener.Close()) })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				r := bufio.NewReaderSize(conn, 64<<10)
				for {
					length := 0
					for {
						line, err := r.ReadSlice('\n')
						if err != nil {
							return
						}
						if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
							length, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
						}
						if len(line) == 2 {
							break
						}
					}
					if _, err := r.Discard(length); err != nil {
						return
					}
					if _, err := io.WriteString(conn, answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

func canned(code int, headers, body string) string {
	return "HTTP/1.1 " + strconv.Itoa(code) + " " + http.StatusText(code) + "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n" + headers + "\r\n" + body
}

// The CPU of a request, both ends of the socket included; the server does next to nothing.
func BenchmarkRequest(b *testing.B) {
	variables := strings.Repeat(`{"key":"CI_SOMETHING","value":"a value of usual length","public":true,"masked":false},`, 100)
	payload := `{"id":1,"token":"x","variables":[` + strings.TrimSuffix(variables, ",") + `],"job_info":{"project_id":1},"git_info":{},"runner_info":{"timeout":3600}}`
	trace := bytes.NewReader(bytes.Repeat([]byte("x"), 4<<10))
	for _, bench := range []struct {
		name, answer string
		call         func(c *Client) error
	}{
		{"claim/empty", canned(204, "X-GitLab-Last-Update: 0123456789abcdef0123456789abcdef\r\n", ""), func(c *Client) error {
			_, err := c.RequestJob(b.Context(), jobRequest(), LaneClaim)
			return err
		}},
		{"claim/job of 9 KB", canned(201, "Content-Type: application/json\r\n", payload), func(c *Client) error {
			_, err := c.RequestJob(b.Context(), jobRequest(), LaneClaim)
			return err
		}},
		{"update", canned(200, "Job-Status: running\r\n", "200"), func(c *Client) error {
			_, err := c.UpdateJob(b.Context(), 1, runnerapi.UpdateRequest{Token: jobToken, State: "running"})
			return err
		}},
		{"trace/4 KB", canned(202, "Job-Status: running\r\nRange: 0-4096\r\n", "0-4096"), func(c *Client) error {
			_, err := c.PatchTrace(b.Context(), 1, jobToken, 0, trace, false)
			return err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c, err := New(Options{URL: cannedServer(b, bench.answer)})
			require.NoError(b, err)
			defer c.Close()
			require.NoError(b, bench.call(c))
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				if err := bench.call(c); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// Pieces of 1 MiB, the server's CPU included.
func BenchmarkTraceThroughput(b *testing.B) {
	body := bytes.NewReader(bytes.Repeat([]byte("0123456789abcde\n"), 1<<16))
	for _, name := range []string{"http", "https, HTTP/1.1", "https, HTTP/2"} {
		b.Run(name, func(b *testing.B) {
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(http.StatusAccepted)
			}))
			var ca []byte
			switch name {
			case "http":
				server.Start()
			default:
				server.EnableHTTP2 = name == "https, HTTP/2"
				server.TLS = &tls.Config{}
				server.StartTLS()
				ca = encode(server.Certificate())
			}
			defer server.Close()
			c, err := New(Options{URL: server.URL, CA: ca})
			require.NoError(b, err)
			defer c.Close()
			c.transports[laneReport].Protocols.SetHTTP2(true) // compared here, not used
			b.SetBytes(body.Size())
			before := cpu(b)
			for b.Loop() {
				if _, err := c.PatchTrace(b.Context(), 1, jobToken, 0, body, false); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N)/1000, "cpu-ms/MiB")
		})
	}
}
