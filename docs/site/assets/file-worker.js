// Search without a server: browsers start no workers for pages that were opened as files.
// A hidden frame takes the worker's place: it runs the same script, on the page's own thread.
if (location.protocol === "file:") {
    window.Worker = class extends EventTarget {
        constructor(script) {
            super();
            const frame = document.createElement("iframe");
            frame.hidden = true;
            this.ready = new Promise((resolve, reject) => {
                frame.addEventListener("load", () => {
                    const scope = frame.contentWindow, element = scope.document.createElement("script");
                    scope.postMessage = (data) => this.tell(new MessageEvent("message", { data }));
                    element.onload = () => resolve(scope);
                    element.onerror = () => { this.tell(new ErrorEvent("error")); reject(new Error(script)); };
                    element.src = new URL(script, location.href).href;
                    scope.document.head.append(element);
                }, { once: true });
            });
            this.frame = frame;
            document.documentElement.append(frame);
        }

        tell(event) {
            this.dispatchEvent(event);
            this[`on${event.type}`]?.(event);
        }

        postMessage(data) {
            this.ready.then((scope) => scope.onmessage?.({ data }), () => {});
        }

        terminate() {
            this.frame.remove();
        }
    };
}
