@echo off
rem The twin of the Makefile for Windows: "make run" and "make test", here without make.
setlocal
cd /d "%~dp0"
set "PYTHONUTF8=1"
set "PIP_DISABLE_PIP_VERSION_CHECK=1"
if not defined PYTHON set "PYTHON=py -3"
if not defined CONFIG set "CONFIG=configs\quickstart.yaml"
set "BIN=.venv\Scripts"
if /i "%~1"=="install" goto install
if /i "%~1"=="run" goto run
if /i "%~1"=="test" goto test
if /i "%~1"=="lint" goto lint
echo make install   the virtual environment .venv with the tested versions of everything
echo make run       start the pipeline, or go on after any interruption
echo make test      lint, types, and every test except the long soaks
echo make lint      ruff and mypy --strict
exit /b 0

:run
call :install
if errorlevel 1 exit /b 1
"%BIN%\so8t.exe" --home "%CD%" resume --config "%CONFIG%"
exit /b %errorlevel%

:test
call :lint
if errorlevel 1 exit /b 1
"%BIN%\python.exe" -m pytest -m "not soak"
exit /b %errorlevel%

:lint
call :install
if errorlevel 1 exit /b 1
"%BIN%\ruff.exe" check .
if errorlevel 1 exit /b 1
"%BIN%\mypy.exe" --strict so8t_fsm
exit /b %errorlevel%

rem Once; again when constraints.txt or pyproject.toml differ from the copies kept in .venv.
:install
if not exist "%BIN%\python.exe" goto venv
"%BIN%\python.exe" -c "import filecmp, sys; sys.exit(not all(filecmp.cmp(f, '.venv/' + f, False) for f in ('constraints.txt', 'pyproject.toml')))" 2>nul
if errorlevel 1 goto packages
exit /b 0
:venv
%PYTHON% -m venv .venv
if errorlevel 1 exit /b 1
:packages
rem torch comes first and by itself: a build for your GPU that is there already is kept.
for /f "tokens=*" %%v in ('type constraints.txt ^| find "torch=="') do set "TORCH=%%v"
"%BIN%\python.exe" -m pip install --quiet "%TORCH%"
if errorlevel 1 exit /b 1
"%BIN%\python.exe" -m pip install --quiet -c constraints.txt -e ".[dev,postgres]"
if errorlevel 1 exit /b 1
copy /y constraints.txt .venv\constraints.txt >nul
copy /y pyproject.toml .venv\pyproject.toml >nul
exit /b 0
