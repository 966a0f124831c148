package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"
)

// answer is a response that has not been sent.
type answer struct {
	header http.Header
	code   int
	body   []byte
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(code int) {
	if a.code == 0 && code >= 200 { // 1xx is not the answer
		a.code = code
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.body = append(a.body, p...)
	return len(p), nil
}

func (a *answer) send(w http.ResponseWriter) {
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.code)
	_, _ = w.Write(a.body)
}

func status(w http.ResponseWriter, f Fault) {
	maps.Copy(w.Header(), f.Header)
	w.Header().Set("Content-Type", "application/json")
	code := f.Code
	if code == 0 {
		code = http.StatusInternalServerError
	}
	w.WriteHeader(code)
	if code != http.StatusNoContent && code != http.StatusNotModified {
		fmt.Fprintf(w, `{"message":%q}`, strconv.Itoa(code)+" "+http.StatusText(code))
	}
}

func page(w http.ResponseWriter, f Fault) {
	maps.Copy(w.Header(), f.Header)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if f.Code != 0 {
		w.WriteHeader(f.Code)
	}
	_, _ = io.WriteString(w, "<!DOCTYPE html>\n<html><head><title>GitLab is not responding</title></head><body><h1>Whoops</h1></body></html>\n")
}

// truncate sends half of the answer and ends the connection as a process that dies does.
func truncate(w http.ResponseWriter, a *answer) {
	if len(a.body) < 2 {
		if conn := hijack(w); conn != nil {
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nServer: nginx\r\n", a.code, http.StatusText(a.code))
			_ = conn.Close()
			return
		}
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), a.header)
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.code)
	_, _ = w.Write(a.body[:len(a.body)/2])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// readBody takes in a request's body: before it has come to its end, the server does not notice that the client has gone.
func readBody(r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// reset ends the connection by a RST.
func reset(w http.ResponseWriter) {
	conn := hijack(w)
	if conn == nil {
		panic(http.ErrAbortHandler)
	}
	closeHard(conn)
}

func hijack(w http.ResponseWriter) net.Conn {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil // HTTP/2, or the connection has ended
	}
	return conn
}

// closeHard closes a connection so that the other side gets a RST.
func closeHard(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// wait returns after d or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// throttle lets bodies pass at a number of bytes per second, in pieces of a tenth of a second.
type throttle struct {
	ctx  context.Context
	rate int
}

func (t *throttle) piece() int { return max(t.rate/10, 1) }

func (t *throttle) pay(n int) { wait(t.ctx, time.Duration(n)*time.Second/time.Duration(t.rate)) }

func (t *throttle) reader(body io.ReadCloser) io.ReadCloser {
	return &slowReader{ReadCloser: body, throttle: t}
}

func (t *throttle) writer(w http.ResponseWriter) http.ResponseWriter {
	return &slowWriter{ResponseWriter: w, throttle: t}
}

type slowReader struct {
	io.ReadCloser
	throttle *throttle
}

func (r *slowReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p[:min(len(p), r.throttle.piece())])
	r.throttle.pay(n)
	if err == nil {
		err = r.throttle.ctx.Err()
	}
	return n, err
}

type slowWriter struct {
	http.ResponseWriter
	throttle *throttle
}

func (w *slowWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *slowWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, err := w.ResponseWriter.Write(p[done:min(len(p), done+w.throttle.piece())])
		done += n
		if err != nil {
			return done, err
		}
		if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
			return done, err
		}
		w.throttle.pay(n)
		if err := w.throttle.ctx.Err(); err != nil {
			return done, err
		}
	}
	return len(p), nil
}
