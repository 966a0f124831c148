package client

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// checkProxy says what is wrong with the proxy that the environment names for an address: http.ProxyFromEnvironment takes
// one that it cannot read for none. The value is not shown, it may have a password in it.
func checkProxy(base url.URL) error {
	host := base.Hostname()
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil // these never go by a proxy
	}
	name := strings.ToUpper(base.Scheme) + "_PROXY"
	value := os.Getenv(name)
	if value == "" {
		name = strings.ToLower(name)
		value = os.Getenv(name)
	}
	if value == "" {
		return nil
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		u, err = url.Parse("http://" + value)
	}
	if err != nil || u.Hostname() == "" {
		return fmt.Errorf("%s in the environment is not the address of a proxy; write it like http://proxy.example.com:3128", name)
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return nil
	}
	return fmt.Errorf("%s in the environment begins with %s://, which is no kind of proxy; use http://, https:// or socks5://", name, u.Scheme)
}
