/* The least that any server on Linux does for a small answer: one thread, epoll, one read and one write a request. It looks
 * for the end of a head and sends a canned answer of the given size, whatever was asked. Usage: loop PORT BYTES */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
	if (argc != 3) return 2;
	int size = atoi(argv[2]), one = 1, l = socket(AF_INET, SOCK_STREAM, 0), ep = epoll_create1(0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(l, (void *)&a, sizeof a) || listen(l, 1024)) return perror("listen"), 1;
	char *out = malloc(size + 1024), in[8192];
	int n = sprintf(out, "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nAge: 0\r\nContent-Length: %d\r\n"
		"Content-Type: application/octet-stream\r\nEtag: \"00000000-1\"\r\nKv-Bookmark: 00000000000000000000000000000000.1\r\n"
		"Kv-Cache: hit\r\nKv-Revision: 1\r\nKv-Staleness-Ms: 1\r\nX-Content-Type-Options: nosniff\r\n"
		"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n", size);
	memset(out + n, 'x', size);
	n += size;
	epoll_ctl(ep, EPOLL_CTL_ADD, l, &(struct epoll_event){.events = EPOLLIN, .data.fd = l});
	for (;;) {
		struct epoll_event ev[256];
		for (int k = epoll_wait(ep, ev, 256, -1), i = 0; i < k; i++) {
			int fd = ev[i].data.fd;
			if (fd == l) {
				if ((fd = accept4(l, 0, 0, SOCK_NONBLOCK)) < 0) continue;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				epoll_ctl(ep, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
				continue;
			}
			int got = read(fd, in, sizeof in);
			if (got >= 4 && memmem(in, got, "\r\n\r\n", 4)) got = write(fd, out, n) == n ? 1 : -1;
			if (got <= 0) close(fd);
		}
	}
}
