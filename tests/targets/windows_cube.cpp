// A Direct3D 11 program: a spinning cube in a window. windows_cube FRAMES [MILLISECONDS] draws so many frames, prints
// how many, and keeps the last one on the screen for a while; with 0 it goes on until Escape is pressed or its window
// is closed. Every frame calls frame(), which calls update(), draw() and show() in this order.
#include <windows.h>

#include <d3d11.h>
#include <d3dcompiler.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

static const char SHADER[] = R"(
cbuffer Constants : register(b0) { float4x4 transform; };
struct Pixel { float4 position : SV_POSITION; float4 colour : COLOR; };
Pixel vertex(float3 position : POSITION, float4 colour : COLOR) {
    Pixel pixel;
    pixel.position = mul(float4(position, 1.0), transform);
    pixel.colour = colour;
    return pixel;
}
float4 pixel(Pixel pixel) : SV_TARGET { return pixel.colour; }
)";

struct Vertex {
    float position[3];
    float colour[4];
};
static const Vertex VERTICES[] = {
    {{-1, -1, -1}, {1, 0, 0, 1}}, {{-1, 1, -1}, {0, 1, 0, 1}},   {{1, 1, -1}, {0, 0, 1, 1}},
    {{1, -1, -1}, {1, 1, 0, 1}},  {{-1, -1, 1}, {0, 1, 1, 1}},   {{-1, 1, 1}, {1, 0, 1, 1}},
    {{1, 1, 1}, {1, 1, 1, 1}},    {{1, -1, 1}, {1, 0.5f, 0, 1}},
};
static const unsigned short INDICES[] = {0, 1, 2, 0, 2, 3, 4, 6, 5, 4, 7, 6, 4, 5, 1, 4, 1, 0,
                                         3, 2, 6, 3, 6, 7, 1, 5, 6, 1, 6, 2, 4, 0, 3, 4, 3, 7};
static const int WIDTH = 320, HEIGHT = 240;

static ID3D11Device *device;
static ID3D11DeviceContext *context;
static IDXGISwapChain *chain;
static ID3D11RenderTargetView *target;
static ID3D11Buffer *constants;
static bool done;

// Libraries are loaded by name, so that nothing but a compiler is needed to build this.
template <typename Function> static Function load(const char *library, const char *name) {
    return (Function)(void *)GetProcAddress(LoadLibraryA(library), name);
}

static void need(HRESULT result, const char *what) {
    if (SUCCEEDED(result))
        return;
    printf("%s: %08lx\n", what, (unsigned long)result);
    exit(2);
}

extern "C" __attribute__((noinline)) LRESULT CALLBACK window_procedure(HWND window, UINT message, WPARAM w, LPARAM l) {
    if (message == WM_DESTROY || (message == WM_KEYDOWN && w == VK_ESCAPE))
        done = true;
    return DefWindowProcA(window, message, w, l);
}

static HWND make_window() {
    WNDCLASSA kind = {};
    kind.lpfnWndProc = window_procedure;
    kind.hInstance = GetModuleHandleA(nullptr);
    kind.lpszClassName = "cube";
    RegisterClassA(&kind);
    return CreateWindowA("cube", "cube", WS_POPUP | WS_VISIBLE, 0, 0, WIDTH, HEIGHT, nullptr, nullptr, kind.hInstance,
                         nullptr);
}

static ID3D11Buffer *make_buffer(UINT binding, UINT bytes, const void *content) {
    D3D11_BUFFER_DESC description = {};
    description.ByteWidth = bytes;
    description.BindFlags = binding;
    D3D11_SUBRESOURCE_DATA data = {content, 0, 0};
    ID3D11Buffer *buffer = nullptr;
    need(device->CreateBuffer(&description, content ? &data : nullptr, &buffer), "CreateBuffer");
    return buffer;
}

static ID3DBlob *compile(const char *entry, const char *model) {
    ID3DBlob *code = nullptr, *errors = nullptr;
    auto compiler = load<pD3DCompile>("d3dcompiler_47.dll", "D3DCompile");
    HRESULT result = compiler(SHADER, sizeof SHADER - 1, "cube", nullptr, nullptr, entry, model, 0, 0, &code, &errors);
    if (FAILED(result) && errors)
        printf("%s\n", (const char *)errors->GetBufferPointer());
    need(result, "D3DCompile");
    return code;
}

static void start(HWND window) {
    DXGI_SWAP_CHAIN_DESC description = {};
    description.BufferDesc.Width = WIDTH;
    description.BufferDesc.Height = HEIGHT;
    description.BufferDesc.Format = DXGI_FORMAT_R8G8B8A8_UNORM;
    description.SampleDesc.Count = 1;
    description.BufferUsage = DXGI_USAGE_RENDER_TARGET_OUTPUT;
    description.BufferCount = 2;
    description.OutputWindow = window;
    description.Windowed = TRUE;
    auto create = load<PFN_D3D11_CREATE_DEVICE_AND_SWAP_CHAIN>("d3d11.dll", "D3D11CreateDeviceAndSwapChain");
    need(create(nullptr, D3D_DRIVER_TYPE_HARDWARE, nullptr, 0, nullptr, 0, D3D11_SDK_VERSION, &description, &chain,
                &device, nullptr, &context),
         "D3D11CreateDeviceAndSwapChain");
    ID3D11Texture2D *back = nullptr;
    need(chain->GetBuffer(0, __uuidof(ID3D11Texture2D), (void **)&back), "GetBuffer");
    need(device->CreateRenderTargetView(back, nullptr, &target), "CreateRenderTargetView");
    back->Release();
    ID3DBlob *vertex = compile("vertex", "vs_4_0"), *pixel = compile("pixel", "ps_4_0");
    ID3D11VertexShader *vertex_shader = nullptr;
    ID3D11PixelShader *pixel_shader = nullptr;
    need(device->CreateVertexShader(vertex->GetBufferPointer(), vertex->GetBufferSize(), nullptr, &vertex_shader),
         "CreateVertexShader");
    need(device->CreatePixelShader(pixel->GetBufferPointer(), pixel->GetBufferSize(), nullptr, &pixel_shader),
         "CreatePixelShader");
    const D3D11_INPUT_ELEMENT_DESC layout[] = {
        {"POSITION", 0, DXGI_FORMAT_R32G32B32_FLOAT, 0, 0, D3D11_INPUT_PER_VERTEX_DATA, 0},
        {"COLOR", 0, DXGI_FORMAT_R32G32B32A32_FLOAT, 0, 12, D3D11_INPUT_PER_VERTEX_DATA, 0},
    };
    ID3D11InputLayout *input = nullptr;
    need(device->CreateInputLayout(layout, 2, vertex->GetBufferPointer(), vertex->GetBufferSize(), &input),
         "CreateInputLayout");
    ID3D11Buffer *vertices = make_buffer(D3D11_BIND_VERTEX_BUFFER, sizeof VERTICES, VERTICES);
    ID3D11Buffer *indices = make_buffer(D3D11_BIND_INDEX_BUFFER, sizeof INDICES, INDICES);
    constants = make_buffer(D3D11_BIND_CONSTANT_BUFFER, 64, nullptr);
    UINT stride = sizeof(Vertex), offset = 0;
    D3D11_VIEWPORT view = {0, 0, WIDTH, HEIGHT, 0, 1};
    context->IASetInputLayout(input);
    context->IASetVertexBuffers(0, 1, &vertices, &stride, &offset);
    context->IASetIndexBuffer(indices, DXGI_FORMAT_R16_UINT, 0);
    context->IASetPrimitiveTopology(D3D11_PRIMITIVE_TOPOLOGY_TRIANGLELIST);
    context->VSSetShader(vertex_shader, nullptr, 0);
    context->VSSetConstantBuffers(0, 1, &constants);
    context->PSSetShader(pixel_shader, nullptr, 0);
    context->RSSetViewports(1, &view);
}

// The product of a rotation about two axes, a shift into the screen and a perspective, row by row.
extern "C" __attribute__((noinline)) void update(int number) {
    float a = 0.6f + number * 0.05f, b = 0.4f + number * 0.03f, ca = cosf(a), sa = sinf(a), cb = cosf(b), sb = sinf(b);
    float scale = 1.6f, aspect = (float)WIDTH / HEIGHT, near_plane = 1, far_plane = 20;
    float depth = far_plane / (far_plane - near_plane);
    float rotated[3][3] = {{ca, sa * sb, sa * cb}, {0, cb, -sb}, {-sa, ca * sb, ca * cb}};
    float matrix[16];
    for (int row = 0; row < 3; row++) {
        matrix[row] = rotated[row][0] * scale / aspect;
        matrix[4 + row] = rotated[row][1] * scale;
        matrix[8 + row] = rotated[row][2] * depth;
        matrix[12 + row] = rotated[row][2];
    }
    matrix[3] = matrix[7] = 0;
    matrix[11] = 5 * depth - near_plane * depth;
    matrix[15] = 5;
    context->UpdateSubresource(constants, 0, nullptr, matrix, 0, 0);
}

extern "C" __attribute__((noinline)) void draw() {
    const float blue[] = {0.0f, 0.1f, 0.3f, 1.0f};
    context->OMSetRenderTargets(1, &target, nullptr);
    context->ClearRenderTargetView(target, blue);
    context->DrawIndexed(sizeof INDICES / sizeof *INDICES, 0, 0);
}

extern "C" __attribute__((noinline)) void show() {
    need(chain->Present(0, 0), "Present");
}

extern "C" __attribute__((noinline)) void frame(int number) {
    update(number);
    draw();
    show();
}

extern "C" __attribute__((noinline)) void pump() {
    MSG message;
    while (PeekMessageA(&message, nullptr, 0, 0, PM_REMOVE)) {
        TranslateMessage(&message);
        DispatchMessageA(&message);
    }
}

int main(int argc, char **argv) {
    int frames = argc > 1 ? atoi(argv[1]) : 0, drawn = 0;
    start(make_window());
    for (; !done && (!frames || drawn < frames); drawn++) {
        pump();
        frame(drawn);
        Sleep(frames ? 0 : 10);
    }
    printf("%d frames\n", drawn);
    fflush(stdout);
    for (int waited = 0; argc > 2 && waited < atoi(argv[2]); waited += 10) {
        pump();
        Sleep(10);
    }
    return 0;
}
