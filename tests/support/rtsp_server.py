"""A real RTSP server for tests: GStreamer's, run by a Python that has gi.

Debian: python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good.

    python3 rtsp_server.py PORT [USER PASSWORD]

Serves a moving test picture of 320x240 at 20 frames/s as rtsp://127.0.0.1:PORT/line and prints "ready PORT"; port 0
takes a free one. With a user it asks for a password. Imports nothing of this project, since it runs outside its
environment.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

PICTURE = (
    "videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=320,height=240,framerate=20/1 "
    "! jpegenc ! rtpjpegpay name=pay0 pt=26"
)


def main(port: str, user: str = "", password: str = "") -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory.new()
    factory.set_launch(f"( {PICTURE} )")
    factory.set_shared(True)
    if user:
        auth = GstRtspServer.RTSPAuth.new()
        token = GstRtspServer.RTSPToken.new()
        token.set_string("media.factory.role", "viewer")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions.new()
        permissions.add_permission_for_role("viewer", "media.factory.access", True)
        permissions.add_permission_for_role("viewer", "media.factory.construct", True)
        factory.set_permissions(permissions)
        assert GstRtsp is not None  # its types are used by the two calls above
    server.get_mount_points().add_factory("/line", factory)
    if server.attach(None) == 0:
        sys.exit(f"port {port} cannot be opened")
    print("ready", server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
