"""A run on a terminal that is made narrower: test/terminal.py cut|fold COMMAND...

Plays the terminal: some cut their lines then (xterm, the Linux console), others fold them (most newer
ones). Whatever it does, the screen must show one bar at most, and all lines that were printed before
it. The command is a training run that goes on for ever; it is interrupted in the end.
"""
import fcntl, os, pty, re, select, signal, struct, sys, termios, time

WIDTHS = 110, 50, 90, 34, 110


class Terminal:
    """Rows of text, the cursor in one of them. A row that continues the one before is marked."""

    def __init__(self, folds, width):
        self.folds, self.width = folds, width
        self.rows, self.continues, self.r, self.c = [""], [False], 0, 0

    def down(self, continues):
        self.r += 1
        if self.r == len(self.rows):
            self.rows.append("")
            self.continues.append(continues)

    def put(self, char):
        if self.c == self.width:
            self.down(True)
            self.c = 0
        row = self.rows[self.r].ljust(self.c)
        self.rows[self.r] = row[: self.c] + char + row[self.c + 1 :]
        self.c += 1

    def erase(self, what):
        self.rows[self.r] = self.rows[self.r][: self.c]
        if what == "J":
            del self.rows[self.r + 1 :], self.continues[self.r + 1 :]

    def write(self, text):
        for code, number, what, char in re.findall(r"(\033\[(\d*)([A-Za-z]))|(.)", text, re.S):
            if code and what in "JK":
                self.erase(what)
            elif code and what == "A":
                self.r = max(0, self.r - int(number or 1))
            elif code:
                sys.exit("FAIL what is %r?" % code)
            elif char == "\r":
                self.c = 0
            elif char == "\n":
                self.down(False)
            else:
                self.put(char)

    def resize(self, width):
        self.width = width
        if not self.folds:
            self.rows = [row[:width] for row in self.rows]
            self.c = min(self.c, width - 1)
            return
        lines, at = [], 0  # whole lines; where in the last of them that begins before it the cursor is
        for i, row in enumerate(self.rows):
            if not self.continues[i]:
                lines.append("")
            if i == self.r:
                line, at = len(lines) - 1, len(lines[-1]) + self.c
            lines[-1] += row
        self.rows, self.continues = [], []
        for i, text in enumerate(lines):
            pieces = [text[k : k + width] for k in range(0, len(text), width)] or [""]
            if i == line:
                self.r, self.c = len(self.rows) + min(at // width, len(pieces) - 1), at % width
            self.rows += pieces
            self.continues += [k > 0 for k in range(len(pieces))]


def is_bar(row):
    return re.search(r"\[=*>|^\d+%  |loss \d\.\d{3}  |\ds left", row)


def check(terminal, when, bars, width):
    """Folded pieces of one bar stand below one another; heads are cut at the narrowest width so far."""
    shown = [i for i, row in enumerate(terminal.rows) if is_bar(row)]
    heads = [i for i, row in enumerate(terminal.rows) if row[:5] in ("devic", "model", "plan ", "run  ")]
    if len(shown) > bars or len(heads) != 4 or (shown and shown[0] < heads[-1]):
        print("\n".join("  | " + row for row in terminal.rows))
        sys.exit("FAIL %s, %d wide: %d bars of %d, %d heads of 4" % (when, width, len(shown), bars, len(heads)))


def main(kind, command):
    terminal = Terminal(kind == "fold", WIDTHS[0])
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(command[0], command)

    def size(width):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def read(seconds):
        """What comes until it has been quiet for so long; ends with the run."""
        text = b""
        while select.select([fd], [], [], seconds)[0]:
            try:
                text += os.read(fd, 65536)
            except OSError:
                break
            if len(text) > 1 << 20:
                break
        terminal.write(text.decode())

    def until(what):
        """Nothing is on its way afterwards."""
        deadline = time.time() + 60
        while not what() and time.time() < deadline:
            read(0.01)
            time.sleep(0.05)
        os.kill(pid, signal.SIGSTOP)
        read(0.2)

    size(WIDTHS[0])
    for old, new in zip(WIDTHS, WIDTHS[1:] + WIDTHS[:1]):
        drawn = []
        was = terminal.rows[-1]

        def changed():
            row = terminal.rows[-1]
            if is_bar(row) and row != was and row not in drawn:
                drawn.append(row)
            return len(drawn) >= 3

        until(changed)
        check(terminal, "drawn", 1, old)
        if not is_bar(terminal.rows[-1]):
            sys.exit("FAIL no bar is drawn, %d wide" % old)
        size(new)
        terminal.resize(new)
        os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGINT)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        read(0.05)
    read(0.05)
    check(terminal, "the end", 0, terminal.width)


main(sys.argv[1], sys.argv[2:])
