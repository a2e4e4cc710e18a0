"""Attacks 56 and 57: code that no interpreter has checked. It has no more rights than the program that makes it."""

from .attack import Form, Limits, Verdict
from .escape import escape

NATIVE_CODE = (
    escape(
        56,
        "machine code of its own",
        Verdict.POLICY_VIOLATION,
        """
import mmap
code = mmap.mmap(-1, 4096, prot=7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
# mov eax, unshare; xor edi, edi; syscall; ret
code.write(bytes.fromhex("b810010000" "31ff" "0f05" "c3"))
entry = ctypes.addressof(ctypes.c_char.from_buffer(code))
if ctypes.CFUNCTYPE(ctypes.c_int)(entry)() == 0:
    succeeded()
""",
        "seccomp:unshare",
    ),
    escape(
        56,
        "library of its own",
        {"full": Verdict.RUNTIME_ERROR, "pod": Verdict.OK},
        """
import _ctypes, sys
with open(_ctypes.__file__, "rb") as original, open("library.so", "wb") as copy:
    copy.write(original.read())
ctypes.PyDLL(os.path.abspath("library.so"))
succeeded()
""",
        forms=(Form.TOOL,),
        limits=Limits(output_bytes=4 << 20),
        no_control_in_full="the flag of the mount cannot be left out apart from the private root",
        uncovered={"pod": "native code can be loaded; it has no more rights than the program (see machine code)"},
    ),
    escape(
        57,
        "crafted bytecode, then raw calls",
        Verdict.POLICY_VIOLATION,
        """
def harmless(): return "constant"
# The bytes of a living code object are overwritten in place: the interpreter runs what it never compiled.
code = harmless.__code__
place = ctypes.string_at(id(code), 400).find(code.co_code[:8])
assert place > 0
ctypes.memset(id(code) + place, 9, 2)
call(272, 0)
succeeded()
""",
        "seccomp:unshare",
    ),
)
