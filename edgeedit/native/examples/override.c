/* Tell the monitor of a camera that an operator changed a verdict:  override SOCKET VERDICT GROUP FRAME
 *
 * One datagram with a JSON object, see edgeedit/device/monitor/inlet.py.  The words must hold no quote, backslash or control character.
 * Exit codes: 0 sent, 2 usage, 8 nobody listens. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int plain(const char* word) {
  for (; *word; ++word) {
    if (*word == '"' || *word == '\\' || (unsigned char)*word < 0x20) return 0;
  }
  return 1;
}

int main(int count, char** words) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  char text[4096];
  if (count != 5 || strlen(words[1]) >= sizeof to.sun_path || !plain(words[2]) || !plain(words[3]) || !plain(words[4])) {
    fprintf(stderr, "usage: override SOCKET VERDICT GROUP FRAME\n");
    return 2;
  }
  strcpy(to.sun_path, words[1]);
  int size = snprintf(text, sizeof text, "{\"verdict\": \"%s\", \"group\": \"%s\", \"frame\": \"%s\"}", words[2], words[3], words[4]);
  if (size < 0 || (size_t)size >= sizeof text) return 2;
  int out = socket(AF_UNIX, SOCK_DGRAM, 0);
  ssize_t sent = out < 0 ? -1 : sendto(out, text, (size_t)size, MSG_DONTWAIT, (struct sockaddr*)&to, sizeof to);
  if (sent != size) perror("override");
  if (out >= 0) close(out);
  return sent == size ? 0 : 8;
}
