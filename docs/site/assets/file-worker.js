// Search without a server: browsers start no workers for pages that were opened as files.
// A hidden frame takes the worker's place: it runs the same script, on the page's own thread. As with a worker,
// messages arrive later, as copies.
if (location.protocol === "file:") {
    window.Worker = class extends EventTarget {
        constructor(script) {
            super();
            this.frame = document.createElement("iframe");
            this.frame.hidden = true;
            this.scope = new Promise((resolve, reject) => {
                this.frame.addEventListener("load", () => {
                    const scope = this.frame.contentWindow, element = scope.document.createElement("script");
                    scope.postMessage = (data) => this.deliver("message", data);
                    element.onload = () => resolve(scope);
                    element.onerror = () => { this.deliver("error"); reject(new Error(script)); };
                    element.src = new URL(script, location.href).href;
                    scope.document.head.append(element);
                }, { once: true });
            });
            this.scope.catch(() => {});
            document.documentElement.append(this.frame);
        }

        deliver(type, message) {
            const data = structuredClone(message);
            setTimeout(() => {
                const event = new MessageEvent(type, { data });
                this.dispatchEvent(event);
                this[`on${type}`]?.(event);
            });
        }

        postMessage(message) {
            const data = structuredClone(message);
            this.scope.then((scope) => setTimeout(() => scope.onmessage?.({ data })), () => {});
        }

        terminate() {
            this.frame.remove();
        }
    };
}
